//! Collects mistakes while values are read, so that one look at a file finds
//! all of them, and reads single fields.

use std::ops::{Range, RangeInclusive};

use toml::Spanned;

use super::error::Finding;
use super::places::Places;
use super::raw::{Field, Value};

/// Bytes of the text.
pub(super) type Span = Range<usize>;

/// Longest part of a value that a message repeats, in characters.
const SHOWN: usize = 80;

/// Everything found so far.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) errors: Vec<Finding>,
    pub(super) warnings: Vec<Finding>,
    /// Where values are that name something outside of the file.
    pub(super) places: Places,
}

/// Why a value can't be what its key needs.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Mistake {
    /// Another type.
    Type {
        /// What the key takes.
        expected: String,
    },
    /// The right type, but not that value.
    Value {
        /// Continues "`key` value ...".
        what: String,
        /// What the key takes.
        expected: String,
    },
}

impl Mistake {
    pub(super) fn wrong_type(expected: impl Into<String>) -> Self {
        Self::Type {
            expected: expected.into(),
        }
    }

    pub(super) fn value(what: impl Into<String>, expected: impl Into<String>) -> Self {
        Self::Value {
            what: what.into(),
            expected: expected.into(),
        }
    }
}

impl Findings {
    /// Notes something wrong.
    pub(super) fn error(
        &mut self,
        span: Span,
        message: impl Into<String>,
        expected: impl Into<String>,
    ) {
        self.errors.push(Finding {
            span,
            message: message.into(),
            expected: expected.into(),
        });
    }

    /// Notes something odd.
    pub(super) fn warn(
        &mut self,
        span: Span,
        message: impl Into<String>,
        expected: impl Into<String>,
    ) {
        self.warnings.push(Finding {
            span,
            message: message.into(),
            expected: expected.into(),
        });
    }

    /// The value of a key; `None` when it is absent, or wrong and noted.
    pub(super) fn optional<T>(
        &mut self,
        key: &str,
        field: &Field,
        read: impl FnOnce(&Value) -> Result<T, Mistake>,
    ) -> Option<Spanned<T>> {
        let field = field.as_ref()?;
        self.one(key, field, read)
    }

    /// The value of a key that has a default. After a mistake the default
    /// stands in, so that the rest can be looked at.
    pub(super) fn or<T>(
        &mut self,
        key: &str,
        field: &Field,
        default: T,
        read: impl FnOnce(&Value) -> Result<T, Mistake>,
    ) -> T {
        self.optional(key, field, read)
            .map_or(default, Spanned::into_inner)
    }

    /// The value of a key that must be there; `table` is said to lack it.
    pub(super) fn required<T>(
        &mut self,
        key: &str,
        field: &Field,
        (table, span): (&str, &Span),
        example: &str,
        read: impl FnOnce(&Value) -> Result<T, Mistake>,
    ) -> Option<Spanned<T>> {
        if field.is_none() {
            self.error(
                span.clone(),
                format!("{table} has no `{key}`"),
                format!("one, such as `{key} = {example}`"),
            );
        }
        self.optional(key, field, read)
    }

    /// The values of a key that takes an array; wrong ones are noted and left
    /// out. Empty when the key is absent.
    pub(super) fn list<T>(
        &mut self,
        key: &str,
        field: &Field,
        expected: &str,
        read: impl Fn(&Value) -> Result<T, Mistake>,
    ) -> Vec<Spanned<T>> {
        let Some(field) = field else {
            return Vec::new();
        };
        let Value::Array(items) = field.get_ref() else {
            self.mistake(key, field, Mistake::wrong_type(expected));
            return Vec::new();
        };
        items
            .iter()
            .filter_map(|item| self.one(key, item, &read))
            .collect()
    }

    fn one<T>(
        &mut self,
        key: &str,
        field: &Spanned<Value>,
        read: impl FnOnce(&Value) -> Result<T, Mistake>,
    ) -> Option<Spanned<T>> {
        match read(field.get_ref()) {
            Ok(value) => Some(Spanned::new(field.span(), value)),
            Err(mistake) => {
                self.mistake(key, field, mistake);
                None
            }
        }
    }

    fn mistake(&mut self, key: &str, field: &Spanned<Value>, mistake: Mistake) {
        let value = field.get_ref();
        match mistake {
            Mistake::Type { expected } => {
                self.error(field.span(), format!("`{key}` is {value}"), expected);
            }
            Mistake::Value { what, expected } => {
                let value = match value {
                    Value::Text(text) => quote(text),
                    Value::Integer(n) => n.to_string(),
                    Value::Boolean(b) => b.to_string(),
                    // Named by what is wrong with it.
                    _ => String::new(),
                };
                let sep = if value.is_empty() { "" } else { " " };
                self.error(
                    field.span(),
                    format!("`{key}`{sep}{value} {what}"),
                    expected,
                );
            }
        }
    }
}

impl Value {
    /// The text of a string. `example` goes into the message, as in "a string
    /// such as ...".
    pub(super) fn text(&self, example: &str) -> Result<&str, Mistake> {
        match self {
            Self::Text(text) => Ok(text),
            _ => Err(Mistake::wrong_type(format!("a string such as {example}"))),
        }
    }

    /// An integer within a range.
    pub(super) fn integer<T>(&self, range: RangeInclusive<T>) -> Result<T, Mistake>
    where
        T: Copy + Into<i128> + TryFrom<i128>,
    {
        let (first, last): (i128, i128) = ((*range.start()).into(), (*range.end()).into());
        let expected = format!("an integer from {first} to {last}");
        match self {
            Self::Integer(n) if (first..=last).contains(n) => {
                T::try_from(*n).map_err(|_| Mistake::value("is out of range", expected))
            }
            Self::Integer(_) => Err(Mistake::value("is out of range", expected)),
            _ => Err(Mistake::wrong_type(expected)),
        }
    }

    /// A boolean.
    pub(super) fn boolean(&self) -> Result<bool, Mistake> {
        match self {
            Self::Boolean(value) => Ok(*value),
            _ => Err(Mistake::wrong_type("true or false")),
        }
    }

    /// What `read` takes, or `false` for none of it.
    pub(super) fn unless_off<T>(
        &self,
        read: impl FnOnce(&Self) -> Result<T, Mistake>,
    ) -> Result<Option<T>, Mistake> {
        if *self == Self::Boolean(false) {
            return Ok(None);
        }
        read(self).map(Some).map_err(|mistake| match mistake {
            Mistake::Type { expected } => Mistake::wrong_type(format!("{expected}, or false")),
            Mistake::Value { what, expected } => {
                Mistake::value(what, format!("{expected}, or false"))
            }
        })
    }

    /// One of the words that a key knows. Words of `planned` are known to come,
    /// and not there yet.
    pub(super) fn word<T: Copy>(
        &self,
        words: &[(&str, T)],
        planned: &[&str],
    ) -> Result<T, Mistake> {
        let quoted: Vec<String> = words.iter().map(|(word, _)| quote(word)).collect();
        let expected = quoted.join(" or ");
        let text = match self {
            Self::Text(text) => text.as_str(),
            _ => return Err(Mistake::wrong_type(expected)),
        };
        match words.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => Ok(*value),
            None if planned.contains(&text) => Err(Mistake::value(
                "is not available in this version",
                format!("{expected}, which this version has"),
            )),
            None => Err(Mistake::value("is not known", expected)),
        }
    }
}

/// A string in quotes, on one line and cut short when it is long.
pub(super) fn quote(text: &str) -> String {
    format!("\"{}\"", shown(text))
}

/// A string on one line, cut short when it is long.
pub(super) fn shown(text: &str) -> String {
    let mut out = String::new();
    for (i, c) in text.chars().enumerate() {
        if i == SHOWN {
            out.push_str("...");
            break;
        }
        // Whatever could end the line or turn the writing direction is escaped.
        match c {
            '"' | '\'' => out.push(c),
            c => out.extend(c.escape_debug()),
        }
    }
    out
}

/// The word that `text` was probably meant to be: at most two slips away, and
/// at most one for short words.
pub(super) fn nearest<'a>(text: &str, words: &[&'a str]) -> Option<&'a str> {
    let text = text.to_lowercase();
    let length = text.chars().count();
    let slips = match length {
        0..=2 => return None,
        3..=4 => 1,
        5..=64 => 2,
        _ => return None,
    };
    words
        .iter()
        .map(|word| (distance(&text, word), *word))
        .filter(|(distance, _)| *distance <= slips)
        .min()
        .map(|(_, word)| word)
}

/// Insertions, deletions, replacements and swaps of neighbours that turn `a`
/// into `b`.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = least;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_counted() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("adress", "address"), 1);
        assert_eq!(distance("wieght", "weight"), 1);
        assert_eq!(distance("kitten", "sitting"), 3);
    }

    #[test]
    fn suggestions_are_near() {
        let words = ["name", "address", "weight", "activation"];
        assert_eq!(nearest("Adress", &words), Some("address"));
        assert_eq!(nearest("nam", &words), Some("name"));
        assert_eq!(nearest("wait", &words), None);
        assert_eq!(nearest("", &words), None);
        assert_eq!(nearest(&"address".repeat(100), &words), None);
    }

    #[test]
    fn quoted_text_stays_on_one_line() {
        assert_eq!(quote("a\nb\u{7}\u{202e}"), "\"a\\nb\\u{7}\\u{202e}\"");
        assert_eq!(quote(&"x".repeat(200)).len(), SHOWN + 5);
    }
}
