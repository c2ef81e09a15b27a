//! What visitors of the article's site do: they log in, ask, and log out. Each request is
//! on a connection of its own, so that it comes by either agent.

use std::thread;
use std::time::{Duration, Instant};

use super::super::raw::Answer;
use super::{Article, Service};
use crate::process::came_true;

/// How long Tomcats may take until one knows any of the other's new sessions.
const REPLICATED: Duration = Duration::from_secs(180);
/// How long one session may take before there is another.
const NEXT: Duration = Duration::from_secs(3);
/// How many sessions there may be until one is known by the other Tomcat.
const LOGINS: usize = 40;
/// How often the other Tomcat is asked whether it knows one: each time costs both a little.
const LOOK: Duration = Duration::from_millis(20);
/// How many logins there may be until one is at a certain Tomcat: they take turns.
const TURNS: usize = 40;

/// A session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The value of its cookie.
    pub cookie: String,
    /// The Tomcat that made it.
    pub node: String,
}

impl Session {
    /// Its id, without the Tomcat's name.
    pub fn id(&self) -> &str {
        self.cookie.split('.').next().unwrap_or_default()
    }
}

/// What a request has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visit {
    /// Who is logged in, as the application sees it: `nobody` without a session.
    pub name: String,
    /// The Tomcat that answered.
    pub node: String,
    /// The value that the session's cookie was set to, if it was.
    pub told: Option<String>,
}

/// The other of a service's two Tomcats.
pub fn other(node: &str) -> String {
    match node.split_at(node.len() - 1) {
        (service, "1") => format!("{service}2"),
        (service, _) => format!("{service}1"),
    }
}

impl Article {
    /// A request, whatever the answer is.
    ///
    /// # Errors
    /// When there is none.
    pub fn fetch(
        &self,
        service: Service,
        path: &str,
        cookie: Option<&str>,
    ) -> Result<Answer, String> {
        let cookie = cookie.map(|value| format!("JSESSIONID={value}"));
        let fields: Vec<_> = cookie.iter().map(|line| ("Cookie", &**line)).collect();
        let answer = self.client(service)?.try_request("GET", path, &fields, b"");
        answer.map_err(|trouble| format!("{} {path}: {trouble}", service.name))
    }

    /// A request that the application has to answer.
    ///
    /// # Errors
    /// When it does not.
    pub fn visit(
        &self,
        service: Service,
        path: &str,
        cookie: Option<&str>,
    ) -> Result<Visit, String> {
        let answer = self.fetch(service, path, cookie)?;
        let (200, Some(node)) = (answer.status, answer.one("x-server")) else {
            return Err(format!("{} {path}: {answer:?}", service.name));
        };
        let text = answer.text();
        let name = text.split([' ', '\n']).next().unwrap_or_default();
        Ok(Visit {
            name: name.to_owned(),
            node: node.to_owned(),
            told: answer.cookie("JSESSIONID").map(str::to_owned),
        })
    }

    /// Logs somebody in who has no session.
    ///
    /// # Errors
    /// When there is no session then, or one whose cookie does not end in the name of the
    /// Tomcat that made it.
    pub fn login(&self, service: Service, name: &str) -> Result<Session, String> {
        let visit = self.visit(service, &format!("/login?name={name}"), None)?;
        match visit {
            Visit {
                name: seen,
                node,
                told: Some(cookie),
            } if seen == name && cookie.ends_with(&format!(".{node}")) => {
                Ok(Session { cookie, node })
            }
            wrong => Err(format!("a login as {name} on {}: {wrong:?}", service.name)),
        }
    }

    /// Logs somebody in until the session is at this Tomcat.
    ///
    /// # Errors
    /// When a login fails, or none comes there.
    pub fn login_at(&self, service: Service, name: &str, node: &str) -> Result<Session, String> {
        for _ in 0..TURNS {
            let session = self.login(service, name)?;
            if session.node == node {
                return Ok(session);
            }
        }
        Err(format!("{TURNS} logins as {name}, and none at {node}"))
    }

    /// The name that a Tomcat has of a session: asked of its own manager, which has it from
    /// the other Tomcat or not. A request goes to the Tomcat of its choice by an id that
    /// nobody knows, with that Tomcat's name. Nothing: it knows no such session.
    ///
    /// # Errors
    /// When another one answers, or none.
    pub fn known(
        &self,
        service: Service,
        node: &str,
        session: &str,
    ) -> Result<Option<String>, String> {
        let path = format!("/known?id={session}");
        let answer = self.fetch(service, &path, Some(&format!("0.{node}")))?;
        if answer.status != 200 || answer.one("x-server") != Some(node) {
            return Err(format!("asked {node} for {session}: {answer:?}"));
        }
        let text = answer.text();
        match text.strip_prefix("known ") {
            Some(name) => Ok(Some(name.trim_end().to_owned())),
            None if text == "no such session\n" => Ok(None),
            None => Err(format!("asked {node} for {session}: {text:?}")),
        }
    }

    /// A session at this Tomcat, or at any, that the other Tomcat knows with its name; and
    /// how many there were until then.
    ///
    /// Not each is known. The article's `channelSendOptions="8"` sends asynchronously: Tomcat
    /// only logs what fails, and messages may overtake each other. Of 120 logins at these
    /// Tomcats, one right after the other, 10 were there as sessions without any attribute,
    /// seconds later: as when what a session has comes before the news that there is one.
    /// Nobody sends it again, so that waiting longer helps nothing. That is Tomcat's: another
    /// one logs in where the last is not known after a while. One that is known later than
    /// that will do too: a slow machine only takes longer.
    ///
    /// # Errors
    /// When a request fails, or none of many sessions is known.
    pub fn replicated_login(
        &self,
        service: Service,
        name: &str,
        at: Option<&str>,
    ) -> Result<(Session, usize), String> {
        let begin = Instant::now();
        let mut sessions: Vec<Session> = Vec::new();
        while sessions.len() < LOGINS && begin.elapsed() < REPLICATED {
            sessions.push(match at {
                Some(node) => self.login_at(service, name, node)?,
                None => self.login(service, name)?,
            });
            let mut found = Ok(None);
            came_true(NEXT, || {
                thread::sleep(LOOK);
                found = self.known_of(service, name, &sessions);
                found != Ok(None)
            });
            if let Some(found) = found? {
                let tries = sessions.len();
                return Ok((sessions.swap_remove(found), tries));
            }
        }
        let mut what = format!(
            "none of {} sessions as {name} is known by the other Tomcat:",
            sessions.len()
        );
        for session in &sessions {
            let there = self.known(service, &other(&session.node), &session.cookie);
            what += &format!("\n{}: {there:?}", session.cookie);
        }
        Err(what)
    }

    /// Which of these the other Tomcat knows with their name.
    fn known_of(
        &self,
        service: Service,
        name: &str,
        sessions: &[Session],
    ) -> Result<Option<usize>, String> {
        // The newest first: it has the best chance.
        for (i, session) in sessions.iter().enumerate().rev() {
            let there = self.known(service, &other(&session.node), &session.cookie)?;
            if there.as_deref() == Some(name) {
                return Ok(Some(i));
            }
        }
        Ok(None)
    }
}
