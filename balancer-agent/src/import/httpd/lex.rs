//! httpd's configuration as nodes: directives and sections. Lines end in `\` to go on;
//! `#` begins a comment at the beginning of a line only; `${NAME}` is replaced in the whole
//! line; words are quoted by `"` or `'` (`server/config.c`, `ap_getword_conf`).

use std::collections::HashMap;

use crate::import::source::{ImportError, Place, Source};

/// Deepest nesting of sections.
const NESTED_MAX: usize = 32;

/// A directive, or a section with what is in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// In lower case.
    pub name: String,
    /// As it was written.
    pub written: String,
    /// Its words.
    pub args: Vec<String>,
    /// Where it is.
    pub place: Place,
    /// What is in a section; `None` for a directive.
    pub inside: Option<Vec<Node>>,
}

impl Node {
    /// A word; empty when there is none.
    pub fn arg(&self, at: usize) -> &str {
        self.args.get(at).map_or("", String::as_str)
    }

    /// As it can be shown.
    pub fn shown(&self) -> String {
        let args = self.args.join(" ");
        match self.inside {
            Some(_) => format!("<{} {args}>", self.written),
            None => format!("{} {args}", self.written).trim_end().to_owned(),
        }
    }
}

/// Reads a file's nodes. `defined` are the variables; `Define` adds to them, as it is read.
///
/// # Errors
/// Sections that are not closed, or quotes.
pub fn read(
    source: &Source,
    defined: &mut HashMap<String, String>,
) -> Result<Vec<Node>, ImportError> {
    let mut open: Vec<Node> = Vec::new();
    let mut top: Vec<Node> = Vec::new();
    let mut whole: Option<(Place, String)> = None;
    for (place, line) in source.lines() {
        let (first, mut text) = whole.take().unwrap_or((place, String::new()));
        let goes_on = line.strip_suffix('\\');
        text.push_str(goes_on.unwrap_or(line));
        if goes_on.is_some() {
            whole = Some((first, text));
            continue;
        }
        let text = text.trim();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let text = replaced(text, defined);
        if let Some(rest) = text.strip_prefix("</") {
            let name = rest
                .trim_end()
                .trim_end_matches('>')
                .trim()
                .to_ascii_lowercase();
            let Some(section) = open.pop() else {
                let message = format!("`</{name}>` closes nothing");
                return Err(ImportError::at(&first, 0, message, "a section before it"));
            };
            if section.name != name {
                let message = format!(
                    "`</{name}>` closes `<{}>` of line {}",
                    section.written, section.place.line
                );
                return Err(ImportError::at(
                    &first,
                    0,
                    message,
                    format!("`</{}>`", section.written),
                ));
            }
            open.last_mut()
                .map_or(&mut top, |parent| parent.inside.get_or_insert_default())
                .push(section);
            continue;
        }
        let (text, section) = match text.strip_prefix('<') {
            Some(rest) => match rest.trim_end().strip_suffix('>') {
                Some(inside) => (inside, true),
                None => {
                    let column = text.chars().count();
                    return Err(ImportError::at(
                        &first,
                        column,
                        "the section's `>` is missing",
                        "`>` at the end of the line",
                    ));
                }
            },
            None => (text.as_str(), false),
        };
        let mut words = words(text, &first)?.into_iter();
        let Some(written) = words.next() else {
            return Err(ImportError::at(
                &first,
                0,
                "a section without a name",
                "`<Name arguments>`",
            ));
        };
        let node = Node {
            name: written.to_ascii_lowercase(),
            written,
            args: words.collect(),
            place: first,
            inside: section.then(Vec::new),
        };
        if node.name == "define" && !section {
            // As in httpd, a later line sees it, wherever it stands.
            defined.insert(node.arg(0).to_owned(), node.arg(1).to_owned());
        }
        match section {
            true if open.len() >= NESTED_MAX => {
                let expected = format!("at most {NESTED_MAX} sections in each other");
                return Err(ImportError::at(
                    &node.place,
                    0,
                    "sections are nested too deeply",
                    expected,
                ));
            }
            true => open.push(node),
            false => open
                .last_mut()
                .map_or(&mut top, |parent| parent.inside.get_or_insert_default())
                .push(node),
        }
    }
    if let Some((place, _)) = whole {
        return Err(ImportError::at(
            &place,
            0,
            "the last line is not finished",
            "no `\\` at its end",
        ));
    }
    match open.pop() {
        Some(section) => {
            let message = format!("`<{}>` is not closed", section.written);
            Err(ImportError::at(
                &section.place,
                0,
                message,
                format!("`</{}>`", section.written),
            ))
        }
        None => Ok(top),
    }
}

/// `${NAME}` by what is defined; what is not stays, as in httpd.
fn replaced(text: &str, defined: &HashMap<String, String>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        out.push_str(before);
        match after.split_once('}') {
            Some((name, behind)) if defined.contains_key(name) => {
                out.push_str(&defined[name]);
                rest = behind;
            }
            _ => {
                out.push_str("${");
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

fn words(text: &str, place: &Place) -> Result<Vec<String>, ImportError> {
    let mut words = Vec::new();
    let chars: Vec<char> = text.chars().collect();
    let mut at = 0;
    while at < chars.len() {
        if chars[at].is_whitespace() {
            at += 1;
            continue;
        }
        let mut word = String::new();
        let quote = chars[at];
        if quote == '"' || quote == '\'' {
            let begin = at;
            at += 1;
            loop {
                match chars.get(at) {
                    None => {
                        let message = format!("the quote {quote} is not closed");
                        let expected = format!("another {quote} on this line");
                        return Err(ImportError::at(place, begin, message, expected));
                    }
                    Some('\\') if chars.get(at + 1).is_some_and(|c| *c == quote || *c == '\\') => {
                        word.push(chars[at + 1]);
                        at += 2;
                    }
                    Some(c) if *c == quote => break,
                    Some(c) => {
                        word.push(*c);
                        at += 1;
                    }
                }
            }
            at += 1;
        } else {
            while let Some(c) = chars.get(at).filter(|c| !c.is_whitespace()) {
                word.push(*c);
                at += 1;
            }
        }
        words.push(word);
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn nodes(text: &str) -> Result<Vec<Node>, String> {
        let source = Source::new(Path::new("h"), text.as_bytes()).map_err(|e| e.to_string())?;
        read(&source, &mut HashMap::new()).map_err(|e| e.to_string())
    }

    #[test]
    fn nodes_are_read_as_httpd_does() {
        let text = "# c\nDefine root /srv\n<VirtualHost *:80>\n  DocumentRoot \"${root}/a \\\"b\\\"\" \n  ServerAlias a \\\n   b # c\n\
                    </virtualhost>\nListen 80\r\n";
        let nodes = nodes(text).unwrap();
        let shown: Vec<String> = nodes.iter().map(Node::shown).collect();
        assert_eq!(
            shown,
            ["Define root /srv", "<VirtualHost *:80>", "Listen 80"]
        );
        let inside = nodes[1].inside.as_ref().unwrap();
        assert_eq!(inside[0].args, ["/srv/a \"b\""]);
        // A comment is only one at the beginning of a line.
        assert_eq!(inside[1].args, ["a", "b", "#", "c"]);
        assert_eq!(inside[1].place.line, 5);
    }

    #[test]
    fn what_is_not_closed_is_refused() {
        for (text, at) in [
            ("<A>\nb\n", "h:1:1: `<A>` is not closed"),
            ("</A>\n", "h:1:1: `</a>` closes nothing"),
            ("<A>\n</B>\n", "h:2:1: `</b>` closes `<A>` of line 1"),
            ("<A\n", "h:1:3: the section's `>`"),
            ("a \"b\n", "h:1:3: the quote \" is not closed"),
            ("a \\", "h:1:1: the last line"),
            ("<>\n", "h:1:1: a section without a name"),
        ] {
            let error = nodes(text).unwrap_err();
            assert!(error.starts_with(at), "{error}");
        }
        assert!(
            nodes(&"<A>\n".repeat(50))
                .unwrap_err()
                .contains("nested too deeply")
        );
    }
}
