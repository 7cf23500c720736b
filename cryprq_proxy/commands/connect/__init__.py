"""Standard input and output through the exit: the proxy that is asked (running_proxy.py), the request to it
(proxy_request.py), the bytes (pump.py), and the command (command.py)."""
