//! The sections of a file, and which defaults hold for which.

use super::lex::{self, Line};
use crate::import::source::{ImportError, Place, Source};
use crate::import::{Options, Report};

/// What a proxy does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Takes connections.
    Frontend,
    /// Has servers.
    Backend,
    /// Both.
    Listen,
}

/// `frontend`, `backend` or `listen`.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// Which.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// Where it begins.
    pub place: Place,
    /// Its own lines.
    pub lines: Vec<Line>,
    /// The `defaults` section that holds for it.
    pub defaults: Option<usize>,
}

/// A `defaults` section.
#[derive(Clone, Debug, Default)]
pub struct Defaults {
    name: String,
    /// Its lines, those of the section it is made from first.
    pub lines: Vec<Line>,
}

/// A whole file.
#[derive(Debug, Default)]
pub struct File {
    /// Lines of `global`.
    pub global: Vec<Line>,
    /// In the order of the file.
    pub defaults: Vec<Defaults>,
    /// In the order of the file.
    pub proxies: Vec<Proxy>,
}

impl File {
    /// The lines of a proxy that may hold: those of its defaults, then its own.
    pub fn lines<'a>(&'a self, proxy: &'a Proxy) -> impl DoubleEndedIterator<Item = &'a Line> {
        let defaults = proxy.defaults.and_then(|at| self.defaults.get(at));
        let defaults = defaults.map_or(&[][..], |d| &d.lines[..]);
        defaults.iter().chain(&proxy.lines)
    }

    /// The last line that begins with these words, of the proxy or its defaults; none when a
    /// later `no` takes it back.
    pub fn last<'a>(&'a self, proxy: &'a Proxy, words: &[&str]) -> Option<&'a Line> {
        let begins = |line: &Line, skip: usize| {
            words
                .iter()
                .enumerate()
                .all(|(i, word)| line.word(i + skip) == *word)
        };
        let line = self
            .lines(proxy)
            .rev()
            .find(|line| begins(line, 0) || (line.word(0) == "no" && begins(line, 1)))?;
        (line.word(0) != "no").then_some(line)
    }

    /// Whether it is about HTTP. HAProxy's own default is TCP.
    pub fn is_http(&self, proxy: &Proxy) -> bool {
        self.last(proxy, &["mode"])
            .is_some_and(|line| line.word(1) == "http")
    }
}

/// Where lines go.
enum Now {
    Nowhere,
    Global,
    Defaults,
    Proxy,
    /// A section that is not carried over.
    Other,
}

/// Reads a file.
///
/// # Errors
/// Lines that are none of HAProxy's language.
pub fn read(source: &Source, options: &Options, report: &mut Report) -> Result<File, ImportError> {
    let mut file = File::default();
    let mut now = Now::Nowhere;
    let mut conditional: Option<Place> = None;
    for (place, text) in source.lines() {
        let mut unset = Vec::new();
        let words = lex::words(&place, text, &options.environment, &mut unset)?;
        for name in unset {
            let reason = "this variable is not set: nothing stands for it, as in HAProxy";
            report.note(&place, format!("${name}"), reason);
        }
        if words.is_empty() {
            continue;
        }
        let line = Line { place, words };
        match line.word(0) {
            ".if" => conditional = Some(line.place.clone()),
            ".endif" => conditional = None,
            _ => {}
        }
        if conditional.is_some() || line.word(0).starts_with('.') {
            let reason = "conditional blocks are not evaluated: write what holds without them";
            report.left(&line.place, line.shown(), reason);
            continue;
        }
        section(line, &mut file, &mut now, report)?;
    }
    if let Some(place) = conditional {
        return Err(ImportError::at(
            &place,
            0,
            "`.if` is not closed",
            "`.endif`",
        ));
    }
    Ok(file)
}

fn section(
    line: Line,
    file: &mut File,
    now: &mut Now,
    report: &mut Report,
) -> Result<(), ImportError> {
    let kind = match line.word(0) {
        "global" => {
            *now = Now::Global;
            return Ok(());
        }
        "defaults" => {
            let from = match line.word(1) {
                "from" => line.word(2),
                _ => match line.word(2) {
                    "from" => line.word(3),
                    _ => "",
                },
            };
            let base = file
                .defaults
                .iter()
                .rev()
                .find(|d| !from.is_empty() && d.name == from);
            file.defaults.push(Defaults {
                name: match line.word(1) {
                    "from" => String::new(),
                    name => name.to_owned(),
                },
                lines: base.map(|d| d.lines.clone()).unwrap_or_default(),
            });
            *now = Now::Defaults;
            return Ok(());
        }
        "frontend" => Kind::Frontend,
        "backend" => Kind::Backend,
        "listen" => Kind::Listen,
        other => {
            let (what, reason) = match other {
                "peers" => (
                    "peers",
                    "nodes that belong together are `[cluster]`, their sessions `[[session.group]]`",
                ),
                "resolvers" => (
                    "resolvers",
                    "names are not resolved while it runs: backends have addresses",
                ),
                "userlist" => (
                    "userlist",
                    "there is no authentication: it is the application's",
                ),
                "mailers" => (
                    "mailers",
                    "nothing sends mail: watch the log, or `balancer status --json`",
                ),
                "cache" => ("cache", "nothing is cached"),
                "program" => ("program", "no programs are started: systemd does that"),
                "http-errors" => (
                    "http-errors",
                    "of error pages there is one: `[pool.maintenance]`",
                ),
                "ring" | "log-forward" | "log-profile" | "fcgi-app" | "crt-store" | "traces"
                | "acme" => ("section", "there is nothing like it"),
                _ => return inside(line, file, now, report),
            };
            let name = match what {
                "section" => line.word(0).to_owned(),
                what => what.to_owned(),
            };
            report.left(
                &line.place,
                format!("{name} {}", line.word(1)).trim_end(),
                reason,
            );
            *now = Now::Other;
            return Ok(());
        }
    };
    let name = line.word(1);
    if name.is_empty() {
        let message = format!("`{}` has no name", line.word(0));
        return Err(ImportError::at(&line.place, 0, message, "a name"));
    }
    let defaults = match line.words.iter().position(|word| word == "from") {
        Some(at) => {
            let from = line.word(at + 1);
            let found = file.defaults.iter().rposition(|d| d.name == from);
            if found.is_none() {
                let message = format!("there is no `defaults {from}`");
                return Err(ImportError::at(
                    &line.place,
                    0,
                    message,
                    "a section before this one",
                ));
            }
            found
        }
        None => file.defaults.len().checked_sub(1),
    };
    *now = Now::Proxy;
    let address = line.word(2);
    let mut lines = Vec::new();
    if !address.is_empty() && address != "from" {
        // `listen NAME ADDRESS`, as old files have it.
        lines.push(Line {
            place: line.place.clone(),
            words: vec!["bind".to_owned(), address.to_owned()],
        });
    }
    file.proxies.push(Proxy {
        kind,
        name: name.to_owned(),
        place: line.place,
        lines,
        defaults,
    });
    Ok(())
}

fn inside(line: Line, file: &mut File, now: &Now, report: &mut Report) -> Result<(), ImportError> {
    match now {
        Now::Global => file.global.push(line),
        Now::Defaults => {
            if let Some(defaults) = file.defaults.last_mut() {
                defaults.lines.push(line);
            }
        }
        Now::Proxy => {
            if let Some(proxy) = file.proxies.last_mut() {
                proxy.lines.push(line);
            }
        }
        Now::Other => {
            report.left(&line.place, line.shown(), "its section is not carried over");
        }
        Now::Nowhere => {
            let message = format!("`{}` stands before the first section", line.word(0));
            let expected =
                "`global`, `defaults`, `frontend`, `backend` or `listen`: is this an haproxy.cfg?";
            return Err(ImportError::at(&line.place, 0, message, expected));
        }
    }
    Ok(())
}
