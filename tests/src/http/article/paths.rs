//! Where paths of the article's site lead: what `JkMount` and `JkUnMount` of its httpd.conf
//! mean for paths of all habits.

use std::fmt;

use super::{Article, Service};

/// What a path must lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Led {
    /// A file of the document root.
    File(&'static str),
    /// No such file there, or one that is not given out: the agent's own 404.
    NoFile,
    /// To the application.
    Tomcat,
    /// Refused: what it means is not sure.
    Refused,
}
use Led::{File, NoFile, Refused, Tomcat};

/// Paths, and where each leads in both services.
pub const PATHS: [(&str, Led); 70] = [
    // Each exclusion, at its root and below.
    ("/images/a.txt", File("images/a.txt")),
    ("/js/a.txt", File("js/a.txt")),
    ("/css/a.txt", File("css/a.txt")),
    ("/externlib/a.txt", File("externlib/a.txt")),
    ("/sample/a.txt", File("sample/a.txt")),
    ("/images/deep/b.txt", File("images/deep/b.txt")),
    ("/js/deep/b.txt", File("js/deep/b.txt")),
    ("/css/deep/b.txt", File("css/deep/b.txt")),
    ("/externlib/deep/b.txt", File("externlib/deep/b.txt")),
    ("/sample/deep/b.txt", File("sample/deep/b.txt")),
    // What is not there is not there: the application is not asked.
    ("/images/none.txt", NoFile),
    ("/js/none.txt", NoFile),
    ("/css/deep/none.txt", NoFile),
    ("/externlib/a.txt/more", NoFile),
    ("/sample/login", NoFile),
    ("/images/", NoFile),
    ("/images/deep/", NoFile),
    ("/images/A.txt", NoFile),
    // A pattern with a `/` before its star does not match without.
    ("/images", Tomcat),
    ("/js", Tomcat),
    ("/css", Tomcat),
    ("/externlib", Tomcat),
    ("/sample", Tomcat),
    // Nor with another case, another name, or somewhere else.
    ("/Images/a.txt", Tomcat),
    ("/IMAGES/a.txt", Tomcat),
    ("/imagesx/a.txt", Tomcat),
    ("/ximages/a.txt", Tomcat),
    ("/image/a.txt", Tomcat),
    ("/app/images/a.txt", Tomcat),
    ("/images.txt", Tomcat),
    ("/images-old/a.txt", Tomcat),
    // All else is the application's, files of the document root too.
    ("/", Tomcat),
    ("/x", Tomcat),
    ("/secret.txt", Tomcat),
    ("/a/b/c.jsp", Tomcat),
    ("/index.html", Tomcat),
    ("/sample.css", Tomcat),
    ("/x?path=/images/a.txt", Tomcat),
    ("/?/js/a.txt", Tomcat),
    // Queries do not matter.
    ("/images/a.txt?v=3", File("images/a.txt")),
    ("/js/a.txt?../../x", File("js/a.txt")),
    ("/css/none.txt?a=b", NoFile),
    // Encoded: decoded once, then compared.
    ("/%69mages/a.txt", File("images/a.txt")),
    ("/images/%61.txt", File("images/a.txt")),
    ("/images/a%2Etxt", File("images/a.txt")),
    ("/%6a%73/a.txt", File("js/a.txt")),
    ("/images/with%20space.txt", File("images/with space.txt")),
    ("/images/%C3%A9.txt", File("images/é.txt")),
    ("/%49mages/a.txt", Tomcat),
    ("/x%20y", Tomcat),
    ("/%2569mages/a.txt", Tomcat),
    // Dotted: resolved, then compared.
    ("/./images/a.txt", File("images/a.txt")),
    ("/images/./a.txt", File("images/a.txt")),
    ("/x/../images/a.txt", File("images/a.txt")),
    ("/images/deep/../a.txt", File("images/a.txt")),
    ("/images/../js/a.txt", File("js/a.txt")),
    ("/images/../secret.txt", Tomcat),
    ("/images/..", Tomcat),
    ("/images/%2e%2e/secret.txt", Tomcat),
    ("/images/%2E./login/x", Tomcat),
    ("/%2e/css/a.txt", File("css/a.txt")),
    // Doubled slashes.
    ("//images/a.txt", File("images/a.txt")),
    ("/images//a.txt", File("images/a.txt")),
    ("//x", Tomcat),
    // Parameters of segments are no part of what is compared.
    ("/images/a.txt;jsessionid=1.user1", File("images/a.txt")),
    ("/images;v=1/a.txt", File("images/a.txt")),
    // What leaves the root, or means different things to different readers, is refused.
    ("/../images/a.txt", Refused),
    ("/images/../../x", Refused),
    ("/images%2Fa.txt", Refused),
    ("/images/%00a.txt", Refused),
];

impl fmt::Display for Led {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            File(file) => write!(f, "the file {file}"),
            NoFile => f.write_str("404 of the agent"),
            Tomcat => f.write_str("the application"),
            Refused => f.write_str("400 of the agent"),
        }
    }
}

impl Article {
    /// Asks a service for a path, and says what is wrong where it leads elsewhere.
    ///
    /// # Errors
    /// When there is no answer, or another one.
    pub fn follow(&self, service: Service, path: &str, to: Led) -> Result<(), String> {
        let answer = self.fetch(service, path, None)?;
        let (status, text) = (answer.status, answer.text());
        let by = answer.one("x-server");
        let right = match to {
            File(file) => {
                (status, by) == (200, None) && text == format!("static {} {file}\n", service.name)
            }
            NoFile => (status, by) == (404, None),
            Refused => (status, by) == (400, None),
            Tomcat => {
                status == 200
                    && by.is_some_and(|node| node.starts_with(service.name))
                    && text.contains("tomcat /")
            }
        };
        match right {
            true => Ok(()),
            false => Err(format!(
                "{} {path}: should lead to {to}, but {status} of {by:?}: {text:?}",
                service.name
            )),
        }
    }
}
