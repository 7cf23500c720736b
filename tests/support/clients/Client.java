// An application in Java: see tests/e2e/test_languages.py.

import java.io.InputStream;
import java.io.OutputStream;
import java.net.HttpURLConnection;
import java.net.InetSocketAddress;
import java.net.Proxy;
import java.net.SocketTimeoutException;
import java.net.URL;

class Client {
    public static void main(String[] arguments) throws Exception {
        Proxy.Type type = arguments[0].equals("http") ? Proxy.Type.HTTP : Proxy.Type.SOCKS;
        Proxy proxy = new Proxy(type, new InetSocketAddress("127.0.0.1", Integer.parseInt(arguments[1])));
        String base = arguments[2];
        if (arguments[3].equals("give-up")) {
            HttpURLConnection silent = open(proxy, base + "/");
            silent.setReadTimeout(200);
            try {
                silent.getResponseCode();
            } catch (SocketTimeoutException expected) {
                System.out.println("gave up");
                System.in.read();
            }
            return;
        }
        System.out.print(read(open(proxy, base + "/hello")));
        HttpURLConnection upload = open(proxy, base + "/upload");
        upload.setRequestMethod("POST");
        upload.setDoOutput(true);
        upload.setChunkedStreamingMode(10_000);
        try (OutputStream output = upload.getOutputStream()) {
            output.write(new byte[300_000]);
        }
        System.out.print(read(upload));
    }

    static HttpURLConnection open(Proxy proxy, String url) throws Exception {
        return (HttpURLConnection) new URL(url).openConnection(proxy);
    }

    static String read(HttpURLConnection connection) throws Exception {
        try (InputStream input = connection.getInputStream()) {
            return new String(input.readAllBytes());
        }
    }
}
