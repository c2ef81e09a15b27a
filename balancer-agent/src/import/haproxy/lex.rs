//! Words of HAProxy's language (configuration manual, 2.2 and 2.3): `#` begins a comment,
//! `\` escapes, `'..'` is taken as it is, `"..."` may have escapes and variables.

use std::collections::HashMap;

use crate::import::source::{ImportError, Place};

/// Most words of a line, as in HAProxy.
const WORDS_MAX: usize = 256;

/// A line with words on it.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// Where it is.
    pub place: Place,
    /// The words; at least one.
    pub words: Vec<String>,
}

impl Line {
    /// A word; empty when there is none.
    pub fn word(&self, at: usize) -> &str {
        self.words.get(at).map_or("", String::as_str)
    }

    /// The words from one on.
    pub fn from(&self, at: usize) -> &[String] {
        self.words.get(at..).unwrap_or_default()
    }

    /// As it can be shown.
    pub fn shown(&self) -> String {
        self.words.join(" ")
    }
}

/// Splits a line. Names of variables that are not set are added to `unset`.
///
/// # Errors
/// A quote that is not closed, or an escape that is none.
pub fn words(
    place: &Place,
    text: &str,
    environment: &HashMap<String, String>,
    unset: &mut Vec<String>,
) -> Result<Vec<String>, ImportError> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let chars: Vec<char> = text.chars().collect();
    let mut at = 0;
    while let Some(c) = chars.get(at).copied() {
        match c {
            ' ' | '\t' => {
                words.extend(word.take());
                at += 1;
            }
            '#' => break,
            '\'' => {
                let Some(end) = chars[at + 1..].iter().position(|c| *c == '\'') else {
                    return Err(open_quote(place, at, '\''));
                };
                let inside = &chars[at + 1..at + 1 + end];
                word.get_or_insert_default().extend(inside);
                at += end + 2;
            }
            '"' => {
                let begin = at;
                let word = word.get_or_insert_default();
                at += 1;
                loop {
                    match chars.get(at).copied() {
                        None => return Err(open_quote(place, begin, '"')),
                        Some('"') => break,
                        Some('\\') => at = escape(place, &chars, at, word)?,
                        Some('$') => at = variable(&chars, at, word, environment, unset),
                        Some(c) => {
                            word.push(c);
                            at += 1;
                        }
                    }
                }
                at += 1;
            }
            '\\' => at = escape(place, &chars, at, word.get_or_insert_default())?,
            c => {
                word.get_or_insert_default().push(c);
                at += 1;
            }
        }
        if words.len() > WORDS_MAX {
            let message = "has too many words";
            let expected = format!("at most {WORDS_MAX}");
            return Err(ImportError::at(place, at, message, expected));
        }
    }
    words.extend(word);
    Ok(words)
}

fn open_quote(place: &Place, at: usize, quote: char) -> ImportError {
    let message = format!("the quote {quote} is not closed");
    ImportError::at(place, at, message, format!("another {quote} on this line"))
}

fn escape(
    place: &Place,
    chars: &[char],
    at: usize,
    word: &mut String,
) -> Result<usize, ImportError> {
    let digit = |at: usize| chars.get(at).and_then(|c| c.to_digit(16));
    let c = match chars.get(at + 1) {
        None => {
            let expected = "a character behind `\\`: lines are not continued";
            return Err(ImportError::at(
                place,
                at,
                "`\\` at the end of a line",
                expected,
            ));
        }
        Some('n') => '\n',
        Some('r') => '\r',
        Some('t') => '\t',
        Some('x') => {
            let code = digit(at + 2).zip(digit(at + 3)).map(|(a, b)| a * 16 + b);
            let c = code.and_then(char::from_u32).filter(char::is_ascii);
            let Some(c) = c else {
                let expected = "two hexadecimal digits of an ASCII character";
                return Err(ImportError::at(
                    place,
                    at,
                    "`\\x` without a character",
                    expected,
                ));
            };
            word.push(c);
            return Ok(at + 4);
        }
        Some(c) => *c,
    };
    word.push(c);
    Ok(at + 2)
}

/// `$NAME`, `${NAME}` or `${NAME-default}`.
fn variable(
    chars: &[char],
    at: usize,
    word: &mut String,
    environment: &HashMap<String, String>,
    unset: &mut Vec<String>,
) -> usize {
    let braces = chars.get(at + 1) == Some(&'{');
    let begin = at + 1 + usize::from(braces);
    let rest = chars.get(begin..).unwrap_or_default();
    let name_end = rest
        .iter()
        .position(|c| !(c.is_ascii_alphanumeric() || *c == '_'));
    let name_end = name_end.unwrap_or(rest.len());
    let name: String = rest[..name_end].iter().collect();
    let mut end = begin + name_end;
    let mut default = None;
    if braces {
        let close = chars[end..].iter().position(|c| *c == '}');
        let Some(close) = close else {
            word.push('$');
            return at + 1;
        };
        let between: String = chars[end..end + close].iter().collect();
        default = between.strip_prefix('-').map(str::to_owned);
        end += close + 1;
    }
    if name.is_empty() {
        word.push('$');
        return at + 1;
    }
    match (environment.get(&name), default) {
        (Some(value), _) => word.push_str(value),
        (None, Some(default)) => word.push_str(&default),
        (None, None) => unset.push(name),
    }
    end
}

/// A time in milliseconds; without a unit, `unit` milliseconds each.
pub fn time(text: &str, unit: u64) -> Option<u64> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let number: u64 = text[..end].parse().ok()?;
    let (factor, divisor) = match &text[end..] {
        "" => (unit, 1),
        "us" => (1, 1_000),
        "ms" => (1, 1),
        "s" => (1_000, 1),
        "m" => (60_000, 1),
        "h" => (3_600_000, 1),
        "d" => (86_400_000, 1),
        _ => return None,
    };
    Some(number.checked_mul(factor)?.div_ceil(divisor))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str) -> Result<Vec<String>, String> {
        let place = Place {
            file: "f".into(),
            line: 3,
        };
        let environment = HashMap::from([("A".to_owned(), "x y".to_owned())]);
        words(&place, text, &environment, &mut Vec::new()).map_err(|e| e.to_string())
    }

    #[test]
    fn words_are_split_as_haproxy_does() {
        let good = [
            ("  a\tb # c", "a|b"),
            (r"a\ b \# c", "a b|#|c"),
            (r#"'a "b' "c \" d""#, r#"a "b|c " d"#),
            (r#""$A" $A "${A}z" "${B-q}""#, "x y|$A|x yz|q"),
            (r"a'b 'c", "ab c"),
            (r"\x41\n", "A\n"),
            (r#"""  b"#, "|b"),
            ("# x", ""),
        ];
        for (text, words) in good {
            assert_eq!(split(text).unwrap().join("|"), words, "{text}");
        }
        assert!(
            split("a 'b")
                .unwrap_err()
                .starts_with("f:3:3: the quote ' is not closed")
        );
        assert!(
            split("a\\")
                .unwrap_err()
                .starts_with("f:3:2: `\\` at the end")
        );
        assert!(split(r"\xzz").unwrap_err().starts_with("f:3:1: `\\x`"));
    }

    #[test]
    fn times_have_units() {
        assert_eq!(time("5s", 1), Some(5_000));
        assert_eq!(time("500", 1), Some(500));
        assert_eq!(time("2", 1_000), Some(2_000));
        assert_eq!(time("1500us", 1), Some(2));
        assert_eq!(time("1d", 1), Some(86_400_000));
        for wrong in ["", "s", "5x", "-1", "99999999999999999999"] {
            assert_eq!(time(wrong, 1), None, "{wrong}");
        }
    }
}
