//! What is wrong with a file, where, and how it is shown: one line for each
//! problem, or excerpts of the file with a caret.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use miette::{
    Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, Severity,
    SourceCode,
};

/// Problems that [`ConfigError::report`] draws; the rest are only counted.
const DRAWN: usize = 25;

/// A file that can't be used, with everything that is wrong in it.
///
/// `Display` gives one line for each problem:
/// `file:line:column: message; expected ...`.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(Listing);

impl ConfigError {
    pub(super) fn new(listing: Listing) -> Self {
        Self(listing)
    }

    /// The problems, in the order of the file.
    pub fn problems(&self) -> &[Problem] {
        &self.0.problems
    }

    /// The problems with the lines that they are about, for people. With
    /// `color`: box drawing characters and colours, for terminals; without:
    /// plain ASCII.
    pub fn report(&self, color: bool) -> String {
        self.0.draw(Severity::Error, color)
    }
}

/// What is odd, though not wrong, in a file.
///
/// `Display` is that of [`ConfigError`].
#[derive(Clone, Debug)]
pub struct Warnings(Listing);

impl Warnings {
    pub(super) fn new(listing: Listing) -> Self {
        Self(listing)
    }

    /// The warnings, in the order of the file.
    pub fn problems(&self) -> &[Problem] {
        &self.0.problems
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.problems.is_empty()
    }

    /// As [`ConfigError::report`].
    pub fn report(&self, color: bool) -> String {
        self.0.draw(Severity::Warning, color)
    }
}

impl fmt::Display for Warnings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One thing that is wrong or odd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line, from 1. 0 when the file could not be read at all.
    pub line: usize,
    /// Column in characters, from 1. 0 when the file could not be read at all.
    pub column: usize,
    /// What is wrong, with the value that is.
    pub message: String,
    /// What would be right.
    pub expected: String,
    /// Bytes of the text that this is about; a byte order mark is not counted.
    pub span: Range<usize>,
}

/// Something wrong or odd before its line is known.
#[derive(Clone, Debug)]
pub(super) struct Finding {
    pub(super) span: Range<usize>,
    pub(super) message: String,
    pub(super) expected: String,
}

/// Problems together with the text that they are in.
#[derive(Clone, Debug)]
pub(super) struct Listing {
    name: String,
    text: Arc<String>,
    problems: Vec<Problem>,
}

impl Listing {
    /// Sorts the findings by position and gives them lines and columns.
    pub(super) fn new(name: &str, text: &str, mut findings: Vec<Finding>) -> Self {
        findings.sort_by_key(|f| (f.span.start, f.span.end));
        let mut lines = Lines::new(text);
        let problems = findings
            .into_iter()
            .map(|finding| {
                let start = char_start(text, finding.span.start);
                let end = char_start(text, finding.span.end).max(start);
                let (line, column) = lines.position(start);
                Problem {
                    line,
                    column,
                    message: finding.message,
                    expected: finding.expected,
                    span: start..end,
                }
            })
            .collect();
        Self {
            name: name.to_owned(),
            text: Arc::new(text.to_owned()),
            problems,
        }
    }

    /// The one problem of a file without any text.
    pub(super) fn unreadable(name: &str, message: String, expected: &str) -> Self {
        Self {
            name: name.to_owned(),
            text: Arc::default(),
            problems: vec![Problem {
                line: 0,
                column: 0,
                message,
                expected: expected.to_owned(),
                span: 0..0,
            }],
        }
    }

    fn draw(&self, severity: Severity, color: bool) -> String {
        let theme = if color {
            GraphicalTheme::unicode()
        } else {
            GraphicalTheme::none()
        };
        let handler = GraphicalReportHandler::new_themed(theme)
            .with_links(false)
            .with_width(100);
        let source = NamedSource::new(&self.name, Arc::clone(&self.text));
        let mut out = String::new();
        for (i, problem) in self.problems.iter().take(DRAWN).enumerate() {
            if i > 0 {
                out.push('\n');
            }
            let excerpt = Excerpt {
                problem,
                severity,
                span: first_line(&self.text, &problem.span),
                file: (problem.line == 0).then_some(self.name.as_str()),
                source: &source,
            };
            // Writing to a string can't fail; if drawing does, the plain line is
            // still worth more than nothing.
            if handler.render_report(&mut out, &excerpt).is_err() {
                out.push_str(&self.line(problem));
                out.push('\n');
            }
        }
        if let more @ 1.. = self.problems.len().saturating_sub(DRAWN) {
            out.push_str(&format!("and {more} more\n"));
        }
        out
    }

    fn line(&self, problem: &Problem) -> String {
        let Problem {
            line,
            column,
            message,
            expected,
            ..
        } = problem;
        let name = &self.name;
        if *line == 0 {
            format!("{name}: {message}; expected {expected}")
        } else {
            format!("{name}:{line}:{column}: {message}; expected {expected}")
        }
    }
}

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            f.write_str(&self.line(problem))?;
        }
        Ok(())
    }
}

/// One problem in the form that miette draws.
struct Excerpt<'a> {
    problem: &'a Problem,
    severity: Severity,
    span: Range<usize>,
    /// Set when there is no text to show.
    file: Option<&'a str>,
    source: &'a NamedSource<Arc<String>>,
}

impl fmt::Debug for Excerpt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.problem, f)
    }
}

impl fmt::Display for Excerpt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.file {
            Some(file) => write!(f, "{file}: {}", self.problem.message),
            None => f.write_str(&self.problem.message),
        }
    }
}

impl std::error::Error for Excerpt<'_> {}

impl Diagnostic for Excerpt<'_> {
    fn severity(&self) -> Option<Severity> {
        Some(self.severity)
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(format!("expected {}", self.problem.expected)))
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.file.is_none().then_some(self.source as _)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let label = LabeledSpan::new(None, self.span.start, self.span.len());
        self.file
            .is_none()
            .then(|| Box::new(std::iter::once(label)) as _)
    }
}

/// Turns ascending byte offsets into lines and columns in one walk.
struct Lines<'a> {
    text: &'a str,
    /// Where the current line starts, and its number.
    start: usize,
    line: usize,
}

impl<'a> Lines<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            text,
            start: 0,
            line: 1,
        }
    }

    /// Line and column of `offset`, which is not below the last one asked for.
    fn position(&mut self, offset: usize) -> (usize, usize) {
        while let Some(end) = self.text[self.start..offset].find('\n') {
            self.start += end + 1;
            self.line += 1;
        }
        let column = self.text[self.start..offset].chars().count() + 1;
        (self.line, column)
    }
}

/// The start of the character that `offset` is in, at most the text's end.
fn char_start(text: &str, offset: usize) -> usize {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    offset
}

/// The part of a span that is on its first line: a whole table is not worth
/// drawing.
fn first_line(text: &str, span: &Range<usize>) -> Range<usize> {
    let part = &text[span.clone()];
    let end = part.find(['\r', '\n']).unwrap_or(part.len());
    span.start..span.start + end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(text: &str, at: &str) -> Listing {
        let start = text.find(at).unwrap();
        Listing::new(
            "f.toml",
            text,
            vec![Finding {
                span: start..start + at.len(),
                message: "bad thing".into(),
                expected: "a good one".into(),
            }],
        )
    }

    #[test]
    fn columns_count_characters() {
        let l = listing("a = 1\r\nb = \"äöü\" # x\n", "# x");
        assert_eq!((l.problems[0].line, l.problems[0].column), (2, 11));
        assert_eq!(l.to_string(), "f.toml:2:11: bad thing; expected a good one");
    }

    #[test]
    fn the_report_points_at_the_place() {
        let l = listing("a = 1\nb = 77\n", "77");
        let plain = l.draw(Severity::Error, false);
        assert!(plain.is_ascii(), "{plain}");
        assert!(plain.contains("f.toml:2:5"), "{plain}");
        let lines: Vec<&str> = plain.lines().collect();
        let code = lines.iter().position(|l| l.contains("b = 77")).unwrap();
        assert_eq!(lines[code].find("77"), lines[code + 1].find('^'), "{plain}");
        assert!(l.draw(Severity::Error, true).contains('\u{1b}'));
    }

    #[test]
    fn offsets_outside_the_text_are_brought_back() {
        let l = Listing::new(
            "f",
            "ä",
            vec![
                Finding {
                    span: 1..2,
                    message: "inside a character".into(),
                    expected: String::new(),
                },
                Finding {
                    span: 9..12,
                    message: "behind the end".into(),
                    expected: String::new(),
                },
            ],
        );
        assert_eq!(l.problems[0].span, 0..2);
        assert_eq!(
            (l.problems[1].span.clone(), l.problems[1].column),
            (2..2, 2)
        );
        l.draw(Severity::Error, false);
    }

    #[test]
    fn long_lists_are_cut_in_the_report() {
        let finding = Finding {
            span: 0..1,
            message: "m".into(),
            expected: "e".into(),
        };
        let l = Listing::new("f", "text", vec![finding; DRAWN + 3]);
        assert!(l.draw(Severity::Error, false).ends_with("and 3 more\n"));
        assert_eq!(l.to_string().lines().count(), DRAWN + 3);
    }
}
