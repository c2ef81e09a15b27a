<%@ page session="false" contentType="text/plain; charset=utf-8" trimDirectiveWhitespaces="true"
         import="java.util.Arrays, java.lang.management.ManagementFactory, javax.management.MBeanServer, javax.management.ObjectName" %>
<%--
  What the article's application is to its balancer: something that one logs in to. It answers
  every path that reaches it, and says which Tomcat it is.
--%>
<%
    response.setHeader("X-Server", application.getInitParameter("node"));
    String path = request.getRequestURI().replaceAll(";.*", "");
    HttpSession session = path.equals("/login") ? request.getSession() : request.getSession(false);
    if (path.equals("/login")) {
        session.setAttribute("name", request.getParameter("name"));
        session.setAttribute("visits", 0);
    } else if (path.equals("/logout") && session != null) {
        session.invalidate();
        session = null;
    } else if (path.equals("/known")) {
        // What the replicated manager of this very service has of a session.
        MBeanServer beans = ManagementFactory.getPlatformMBeanServer();
        String domain = application.getInitParameter("domain");
        String id = request.getParameter("id");
        for (ObjectName manager : beans.queryNames(new ObjectName(domain + ":type=Manager,*"), null)) {
            String ids = (String) beans.invoke(manager, "listSessionIds", null, null);
            if (!Arrays.asList(ids.split("\\s+")).contains(id)) {
                out.print("no such session\n");
                continue;
            }
            Object name = beans.invoke(manager, "getSessionAttribute",
                    new Object[] {id, "name"}, new String[] {"java.lang.String", "java.lang.String"});
            out.print("known " + name + "\n");
        }
        return;
    }
    Object name = session == null ? null : session.getAttribute("name");
    if (name == null) {
        out.print("nobody\n");
    } else {
        int visits = (Integer) session.getAttribute("visits") + 1;
        session.setAttribute("visits", visits);
        out.print(name + " " + visits + "\n");
    }
    out.print("tomcat " + request.getRequestURI() + "\n");
%>
