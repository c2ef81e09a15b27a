//! nginx's configuration as nodes: a directive ends in `;`, or has a block in `{}`; `#` begins
//! a comment at the beginning of a word; words are quoted by `"` or `'`
//! (`ngx_conf_read_token`).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::import::Report;
use crate::import::source::{DEPTH_MAX, ImportError, Place, Reader, Source, glob};

/// Deepest nesting of blocks.
const NESTED_MAX: usize = 32;
/// Most words of a directive.
const WORDS_MAX: usize = 10_000;

/// A directive.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its words.
    pub args: Vec<String>,
    /// Where it is.
    pub place: Place,
    /// What is in its block.
    pub block: Option<Vec<Node>>,
}

impl Node {
    /// A word; empty when there is none.
    pub fn arg(&self, at: usize) -> &str {
        self.args.get(at).map_or("", String::as_str)
    }

    /// What is in its block.
    pub fn inside(&self) -> &[Node] {
        self.block.as_deref().unwrap_or_default()
    }

    /// As it can be shown.
    pub fn shown(&self) -> String {
        let name = &self.name;
        match self.args.is_empty() {
            true => name.clone(),
            false => format!("{name} {}", self.args.join(" ")),
        }
    }
}

/// Reads a file and those that it includes.
///
/// # Errors
/// What is no configuration of nginx.
pub fn read(
    file: &Path,
    reader: &mut Reader,
    report: &mut Report,
) -> Result<Vec<Node>, ImportError> {
    let source = reader.read(file)?;
    let folder = file.parent().map(Path::to_path_buf).unwrap_or_default();
    Includes {
        folder,
        reader,
        report,
    }
    .nodes(&source, 0)
}

struct Includes<'a> {
    folder: PathBuf,
    reader: &'a mut Reader,
    report: &'a mut Report,
}

impl Includes<'_> {
    fn nodes(&mut self, source: &Source, depth: usize) -> Result<Vec<Node>, ImportError> {
        let nodes = parse(source)?;
        self.included(nodes, depth)
    }

    fn included(&mut self, nodes: Vec<Node>, depth: usize) -> Result<Vec<Node>, ImportError> {
        let mut out = Vec::new();
        for mut node in nodes {
            if node.name == "include" && node.block.is_none() {
                if depth >= DEPTH_MAX {
                    let expected = format!("at most {DEPTH_MAX} files in each other");
                    return Err(ImportError::at(
                        &node.place,
                        0,
                        "files are included too deeply",
                        expected,
                    ));
                }
                let pattern = node.arg(0);
                let wild = pattern.contains(['*', '?', '[']);
                let mut files = glob(&self.folder.join(pattern)).unwrap_or_default();
                if files.is_empty() {
                    // A copy of the configuration has its parts beside it.
                    let name = Path::new(pattern);
                    let tail: PathBuf = name
                        .components()
                        .rev()
                        .take(2)
                        .collect::<Vec<_>>()
                        .into_iter()
                        .rev()
                        .collect();
                    files = glob(&self.folder.join(tail)).unwrap_or_default();
                }
                if files.is_empty() && !wild {
                    let reason = "there is no such file here: what is in it was not looked at";
                    self.report.left(&node.place, node.shown(), reason);
                }
                for file in files.into_iter().filter(|file| file.is_file()) {
                    let source = self.reader.read(&file)?;
                    out.extend(self.nodes(&source, depth + 1)?);
                }
                continue;
            }
            if let Some(block) = node.block.take() {
                node.block = Some(self.included(block, depth)?);
            }
            out.push(node);
        }
        Ok(out)
    }
}

/// The nodes of one file.
fn parse(source: &Source) -> Result<Vec<Node>, ImportError> {
    let mut lexer = Lexer {
        chars: source.text.chars().peekable(),
        place: Place {
            file: Arc::clone(&source.name),
            line: 1,
        },
        column: 0,
    };
    let mut stack: Vec<Node> = Vec::new();
    let mut top = Vec::new();
    let mut words: Vec<String> = Vec::new();
    let mut begun: Option<(Place, usize)> = None;
    loop {
        let token = lexer.token()?;
        let (here, column) = (lexer.place.clone(), lexer.column);
        match token {
            Token::Word(word, place, at) => {
                begun.get_or_insert((place, at));
                words.push(word);
                if words.len() > WORDS_MAX {
                    let expected = "`;` or `{` behind the words of a directive";
                    return Err(ImportError::at(
                        &here,
                        column,
                        "a directive does not end",
                        expected,
                    ));
                }
            }
            Token::End | Token::Open => {
                let mut all = std::mem::take(&mut words).into_iter();
                let (Some(name), Some((place, _))) = (all.next(), begun.take()) else {
                    let what = if token == Token::End { "`;`" } else { "`{`" };
                    let message = format!("{what} without a directive before it");
                    return Err(ImportError::at(
                        &here,
                        column.saturating_sub(1),
                        message,
                        "a directive",
                    ));
                };
                let open = token == Token::Open;
                let node = Node {
                    name,
                    args: all.collect(),
                    place,
                    block: open.then(Vec::new),
                };
                if !open {
                    stack
                        .last_mut()
                        .map_or(&mut top, |parent| parent.block.get_or_insert_default())
                        .push(node);
                } else if stack.len() >= NESTED_MAX {
                    let expected = format!("at most {NESTED_MAX} blocks in each other");
                    return Err(ImportError::at(
                        &here,
                        column.saturating_sub(1),
                        "blocks are nested too deeply",
                        expected,
                    ));
                } else {
                    stack.push(node);
                }
            }
            Token::Close => {
                if let Some((place, at)) = begun {
                    let message = format!("`{}` has no end", words.join(" "));
                    return Err(ImportError::at(&place, at, message, "`;` behind it"));
                }
                let Some(node) = stack.pop() else {
                    return Err(ImportError::at(
                        &here,
                        column.saturating_sub(1),
                        "`}` closes nothing",
                        "`{` before it",
                    ));
                };
                stack
                    .last_mut()
                    .map_or(&mut top, |parent| parent.block.get_or_insert_default())
                    .push(node);
            }
            Token::File => {
                if let Some((place, at)) = begun {
                    let message = format!("`{}` has no end", words.join(" "));
                    return Err(ImportError::at(&place, at, message, "`;` behind it"));
                }
                return match stack.pop() {
                    Some(node) => {
                        let message = format!("the block of `{}` is not closed", node.name);
                        Err(ImportError::at(&node.place, 0, message, "`}`"))
                    }
                    None => Ok(top),
                };
            }
        }
    }
}

#[derive(Debug, PartialEq)]
enum Token {
    Word(String, Place, usize),
    End,
    Open,
    Close,
    File,
}

struct Lexer<'a> {
    chars: std::iter::Peekable<std::str::Chars<'a>>,
    place: Place,
    /// Characters of the line that were read.
    column: usize,
}

impl Lexer<'_> {
    fn next(&mut self) -> Option<char> {
        let c = self.chars.next()?;
        if c == '\n' {
            self.place.line = self.place.line.saturating_add(1);
            self.column = 0;
        } else {
            self.column += 1;
        }
        Some(c)
    }

    fn token(&mut self) -> Result<Token, ImportError> {
        loop {
            let Some(c) = self.chars.peek().copied() else {
                return Ok(Token::File);
            };
            match c {
                ' ' | '\t' | '\r' | '\n' => _ = self.next(),
                '#' => while self.next().is_some_and(|c| c != '\n') {},
                ';' => {
                    self.next();
                    return Ok(Token::End);
                }
                '{' => {
                    self.next();
                    return Ok(Token::Open);
                }
                '}' => {
                    self.next();
                    return Ok(Token::Close);
                }
                c => return self.word(c),
            }
        }
    }

    fn word(&mut self, first: char) -> Result<Token, ImportError> {
        let (place, column) = (self.place.clone(), self.column);
        let mut word = String::new();
        if first == '"' || first == '\'' {
            self.next();
            loop {
                match self.next() {
                    None => {
                        let message = format!("the quote {first} is not closed");
                        return Err(ImportError::at(
                            &place,
                            column,
                            message,
                            format!("another {first}"),
                        ));
                    }
                    Some('\\') => self.escaped(&mut word),
                    Some(c) if c == first => break,
                    Some(c) => word.push(c),
                }
            }
            return Ok(Token::Word(word, place, column));
        }
        while let Some(c) = self.chars.peek().copied() {
            match c {
                ' ' | '\t' | '\r' | '\n' | ';' => break,
                '{' if !word.ends_with('$') => break,
                // `${name}` is part of a word.
                '}' if word
                    .rsplit_once("${")
                    .is_none_or(|(_, name)| name.contains('}')) =>
                {
                    break;
                }
                '\\' => {
                    self.next();
                    self.escaped(&mut word);
                }
                c => {
                    self.next();
                    word.push(c);
                }
            }
        }
        Ok(Token::Word(word, place, column))
    }

    /// What a backslash stands before; most are kept with it, as in regular expressions.
    fn escaped(&mut self, word: &mut String) {
        match self.next() {
            Some(c @ ('"' | '\'' | '\\')) => word.push(c),
            Some('t') => word.push('\t'),
            Some('r') => word.push('\r'),
            Some('n') => word.push('\n'),
            Some(c) => word.extend(['\\', c]),
            None => word.push('\\'),
        }
    }
}

/// A time in milliseconds: `60`, `1m30s`, `500ms`.
pub fn time(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let end = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        let number: u64 = rest[..end].parse().ok()?;
        let unit_end = rest[end..]
            .find(|c: char| c.is_ascii_digit())
            .map_or(rest.len(), |at| at + end);
        let factor = match &rest[end..unit_end] {
            "ms" => 1,
            "" | "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "w" => 604_800_000,
            _ => return None,
        };
        total = total.checked_add(number.checked_mul(factor)?)?;
        rest = &rest[unit_end..];
    }
    (!text.is_empty()).then_some(total)
}

/// A size in bytes: `8k`, `10m`.
pub fn size(text: &str) -> Option<u64> {
    let (digits, factor) = match text.to_ascii_lowercase().chars().last()? {
        'k' => (&text[..text.len() - 1], 1 << 10),
        'm' => (&text[..text.len() - 1], 1 << 20),
        'g' => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(text: &str) -> Result<Vec<Node>, String> {
        let source = Source::new(Path::new("n"), text.as_bytes()).map_err(|e| e.to_string())?;
        parse(&source).map_err(|e| e.to_string())
    }

    #[test]
    fn words_and_blocks_are_read_as_nginx_does() {
        let text = "a  b; # c\nhttp {\r\n  x 'y;z' \"q\\\"r\" \\.php$ ${v}w a#b;\n  s {}\n}\n";
        let nodes = nodes(text).unwrap();
        assert_eq!(nodes[0].shown(), "a b");
        let inside = nodes[1].inside();
        assert_eq!(inside[0].args, ["y;z", "q\"r", "\\.php$", "${v}w", "a#b"]);
        assert_eq!(inside[0].place.line, 3);
        assert_eq!(inside[1].block, Some(Vec::new()));
    }

    #[test]
    fn what_is_not_closed_is_refused() {
        for (text, at) in [
            ("a {\n b;\n", "n:1:1: the block of `a` is not closed"),
            ("a;\n}\n", "n:2:1: `}` closes nothing"),
            ("a {\n  b }\n", "n:2:3: `b` has no end"),
            ("a 'b;\n", "n:1:3: the quote ' is not closed"),
            ("a\n", "n:1:1: `a` has no end"),
            (";", "n:1:1: `;` without a directive"),
            ("{", "n:1:1: `{` without a directive"),
        ] {
            let error = nodes(text).unwrap_err();
            assert!(error.starts_with(at), "{error}");
        }
        assert!(
            nodes(&"a {".repeat(100))
                .unwrap_err()
                .contains("nested too deeply")
        );
    }

    #[test]
    fn times_and_sizes_have_units() {
        assert_eq!(time("1m30s"), Some(90_000));
        assert_eq!(time("60"), Some(60_000));
        assert_eq!(time("500ms"), Some(500));
        assert_eq!(time("x"), None);
        assert_eq!(time(""), None);
        assert_eq!(size("10m"), Some(10 << 20));
        assert_eq!(size("8K"), Some(8 << 10));
        assert_eq!(size("x"), None);
        assert_eq!(size("\u{20ac}"), None);
    }
}
