import jakarta.servlet.ServletInputStream;
import jakarta.servlet.http.HttpServlet;
import jakarta.servlet.http.HttpServletRequest;
import jakarta.servlet.http.HttpServletResponse;
import jakarta.servlet.http.HttpSession;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.security.cert.X509Certificate;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Random;

/** Says what it sees of a request, and answers as the path asks. */
public class Probe extends HttpServlet {
    private static final long serialVersionUID = 1;

    @Override
    protected void service(HttpServletRequest request, HttpServletResponse response)
            throws IOException {
        String path = request.getRequestURI();
        int end = path.indexOf('/', 1);
        switch (end < 0 ? path : path.substring(0, end)) {
            case "/health": text(response, "ok\n"); break;
            case "/random": random(request, response); break;
            case "/source": source(request, response); break;
            case "/session": session(request, response); break;
            case "/refuse": response.setStatus(413); break;
            case "/through": through(request, response); break;
            case "/empty": response.setStatus(number(request, "status", 204)); break;
            default: echo(request, response);
        }
    }

    private static int number(HttpServletRequest request, String name, int otherwise) {
        String text = request.getParameter(name);
        return text == null ? otherwise : Integer.parseInt(text);
    }

    private static void text(HttpServletResponse response, String text) throws IOException {
        byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
        response.setContentType("text/plain;charset=utf-8");
        response.setContentLength(bytes.length);
        response.getOutputStream().write(bytes);
    }

    /** Everything that a request is. */
    private static void echo(HttpServletRequest request, HttpServletResponse response)
            throws IOException {
        StringBuilder out = new StringBuilder();
        say(out, "method", request.getMethod());
        say(out, "protocol", request.getProtocol());
        say(out, "scheme", request.getScheme());
        say(out, "secure", request.isSecure());
        say(out, "server_name", request.getServerName());
        say(out, "server_port", request.getServerPort());
        say(out, "remote_addr", request.getRemoteAddr());
        say(out, "remote_host", request.getRemoteHost());
        say(out, "remote_port", request.getRemotePort());
        say(out, "local_addr", request.getLocalAddr());
        say(out, "uri", request.getRequestURI());
        say(out, "path", request.getPathInfo());
        say(out, "query", request.getQueryString());
        say(out, "url", request.getRequestURL());
        say(out, "activation", request.getAttribute("JK_LB_ACTIVATION"));
        String tls = "jakarta.servlet.request.";
        say(out, "cipher", request.getAttribute(tls + "cipher_suite"));
        say(out, "key_size", request.getAttribute(tls + "key_size"));
        say(out, "tls", request.getAttribute("org.apache.tomcat.util.net.secure_protocol_version"));
        Object chain = request.getAttribute(tls + "X509Certificate");
        if (chain instanceof X509Certificate[]) {
            for (X509Certificate one : (X509Certificate[]) chain) {
                say(out, "certificate", one.getSerialNumber());
            }
        }
        List<String> headers = new ArrayList<>();
        for (String name : Collections.list(request.getHeaderNames())) {
            for (String value : Collections.list(request.getHeaders(name))) {
                headers.add(name.toLowerCase() + "=" + value);
            }
        }
        Collections.sort(headers);
        for (String header : headers) {
            say(out, "header", header);
        }
        digest(out, request.getInputStream());
        text(response, out.toString());
    }

    private static void say(StringBuilder out, String name, Object value) {
        out.append(name).append(' ');
        String text = String.valueOf(value);
        for (int i = 0; i < text.length(); i++) {
            char c = text.charAt(i);
            if (c >= ' ' && c < 0x7f && c != '\\') {
                out.append(c);
            } else {
                out.append(String.format("\\u%04x", (int) c));
            }
        }
        out.append('\n');
    }

    private static void digest(StringBuilder out, InputStream in) throws IOException {
        MessageDigest sha;
        try {
            sha = MessageDigest.getInstance("SHA-256");
        } catch (java.security.NoSuchAlgorithmException error) {
            throw new IOException(error);
        }
        byte[] part = new byte[16384];
        long length = 0;
        for (int n; (n = in.read(part)) >= 0;) {
            sha.update(part, 0, n);
            length += n;
        }
        StringBuilder hex = new StringBuilder();
        for (byte b : sha.digest()) {
            hex.append(String.format("%02x", b));
        }
        say(out, "body", length);
        say(out, "digest", hex);
    }

    /** Headers and a body of random sizes, the same ones for the same seed. */
    private static void random(HttpServletRequest request, HttpServletResponse response)
            throws IOException {
        Random random = new Random(Long.parseLong(request.getParameter("seed")));
        int status = new int[] {200, 200, 200, 201, 204, 304, 404, 500}[random.nextInt(8)];
        response.setStatus(status);
        int headers = random.nextInt(20);
        int most = 1 + random.nextInt(300);
        for (int i = 0; i < headers; i++) {
            StringBuilder value = new StringBuilder();
            for (int n = random.nextInt(most); n > 0; n--) {
                value.append((char) (33 + random.nextInt(94)));
            }
            // Some have a code in AJP13, some are there twice.
            String[] names = {"Content-Language", "Set-Cookie", "WWW-Authenticate", "X-A", "X-" + i};
            response.addHeader(names[random.nextInt(names.length)], value.toString());
        }
        byte[] body = new byte[random.nextInt(4) == 0 ? 0 : random.nextInt(30000)];
        random.nextBytes(body);
        boolean bodyless = status == 204 || status == 304;
        if (random.nextBoolean() && !bodyless) {
            response.setContentLength(body.length);
        }
        if (bodyless) {
            return;
        }
        OutputStream out = response.getOutputStream();
        for (int at = 0; at < body.length;) {
            int n = Math.min(body.length - at, 1 + random.nextInt(12000));
            out.write(body, at, n);
            at += n;
            if (random.nextInt(3) == 0) {
                out.flush();
            }
        }
    }

    /** So many bytes. */
    private static void source(HttpServletRequest request, HttpServletResponse response)
            throws IOException {
        long bytes = Long.parseLong(request.getParameter("bytes"));
        if (request.getParameter("unknown") == null) {
            response.setContentLengthLong(bytes);
        }
        byte[] part = new byte[65536];
        for (int i = 0; i < part.length; i++) {
            part[i] = (byte) (i * 31 + (i >> 8));
        }
        OutputStream out = response.getOutputStream();
        for (long left = bytes; left > 0; left -= part.length) {
            out.write(part, 0, (int) Math.min(left, part.length));
        }
    }

    private static void session(HttpServletRequest request, HttpServletResponse response)
            throws IOException {
        HttpSession session = request.getSession();
        Integer count = (Integer) session.getAttribute("count");
        count = count == null ? 1 : count + 1;
        session.setAttribute("count", count);
        text(response, session.getId() + " " + count + "\n");
    }

    /** Each part of the body comes back at once. */
    private static void through(HttpServletRequest request, HttpServletResponse response)
            throws IOException {
        ServletInputStream in = request.getInputStream();
        OutputStream out = response.getOutputStream();
        byte[] part = new byte[4096];
        for (int n; (n = in.read(part)) >= 0;) {
            out.write(part, 0, n);
            out.flush();
        }
    }
}
