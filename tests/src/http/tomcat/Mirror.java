import jakarta.websocket.OnMessage;
import jakarta.websocket.server.ServerEndpoint;

/** A WebSocket that says everything again. */
@ServerEndpoint("/mirror")
public class Mirror {
    @OnMessage
    public String heard(String text) {
        return text;
    }
}
