//! What clients send, in a form in which it can't pass for anything else: neither end a
//! line, nor a quoted field, nor look like a terminal's orders.

use std::io;

use serde::Serializer;

/// Most bytes of one field; the rest is cut, and `...` says so.
pub(super) const FIELD_MAX: usize = 8 << 10;

/// Whether a byte stands for itself in Apache's formats. Without branches, so that the
/// compiler looks at many at once.
fn plain(byte: u8) -> bool {
    (byte.wrapping_sub(0x20) < 0x5f) & (byte != b'"') & (byte != b'\\')
}

/// How many bytes stand for themselves, up to the first that does not.
fn plain_bytes(text: &[u8]) -> usize {
    const WIDE: usize = 16;
    let (chunks, _) = text.as_chunks::<WIDE>();
    let all = |chunk: &&[u8; WIDE]| chunk.iter().fold(true, |all, byte| all & plain(*byte));
    let at = WIDE * chunks.iter().take_while(all).count();
    let rest = text[at..].iter().position(|byte| !plain(*byte));
    rest.map_or(text.len(), |rest| at + rest)
}

/// Appends a field as Apache's `ap_escape_logitem` does: `\"`, `\\`, `\n`, and `\x1b` for
/// what is not printable ASCII.
pub(super) fn apache(text: &[u8], line: &mut Vec<u8>) {
    let cut = text.len() > FIELD_MAX;
    let mut rest = &text[..text.len().min(FIELD_MAX)];
    loop {
        let run = plain_bytes(rest);
        line.extend_from_slice(&rest[..run]);
        let Some(&byte) = rest.get(run) else { break };
        rest = &rest[run + 1..];
        line.push(b'\\');
        match byte {
            b'"' | b'\\' => line.push(byte),
            0x08 => line.push(b'b'),
            b'\n' => line.push(b'n'),
            b'\r' => line.push(b'r'),
            b'\t' => line.push(b't'),
            0x0b => line.push(b'v'),
            _ => {
                let digit = |n: u8| b"0123456789abcdef"[usize::from(n)];
                line.extend_from_slice(&[b'x', digit(byte >> 4), digit(byte & 15)]);
            }
        }
    }
    if cut {
        line.extend_from_slice(b"...");
    }
}

/// Appends a field as a JSON string, in quotes; in ASCII alone, so that no reader, however
/// it splits lines, sees more than one.
pub(super) fn json(text: &str, line: &mut Vec<u8>) {
    if text.len() <= FIELD_MAX && plain_bytes(text.as_bytes()) == text.len() {
        line.push(b'"');
        line.extend_from_slice(text.as_bytes());
        line.push(b'"');
        return;
    }
    let start = line.len();
    let mut out = serde_json::Serializer::with_formatter(&mut *line, AsciiJson);
    if (&mut out).serialize_str(&bounded(text)).is_err() {
        // Writing to memory does not fail; if it did, the line must still be JSON.
        line.truncate(start);
        line.extend_from_slice(b"null");
    }
}

struct AsciiJson;

impl serde_json::ser::Formatter for AsciiJson {
    fn write_string_fragment<W>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()>
    where
        W: ?Sized + io::Write,
    {
        // serde_json has escaped what is below 0x20, quotes and backslashes.
        let mut rest = fragment;
        while let Some(at) = rest.bytes().position(|b| b >= 0x7f) {
            writer.write_all(&rest.as_bytes()[..at])?;
            let mut chars = rest[at..].chars();
            if let Some(c) = chars.next() {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
            rest = chars.as_str();
        }
        writer.write_all(rest.as_bytes())
    }
}

/// The field, or its beginning and `...` when it is too long.
fn bounded(text: &str) -> std::borrow::Cow<'_, str> {
    if text.len() <= FIELD_MAX {
        return text.into();
    }
    let end = (0..=FIELD_MAX).rev().find(|at| text.is_char_boundary(*at));
    format!("{}...", &text[..end.unwrap_or(0)]).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn escaped(text: &str) -> String {
        let mut line = Vec::new();
        apache(text.as_bytes(), &mut line);
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn as_apache_does() {
        assert_eq!(escaped("GET /a?b=c HTTP/1.1"), "GET /a?b=c HTTP/1.1");
        assert_eq!(escaped("a\"b\\c"), r#"a\"b\\c"#);
        assert_eq!(
            escaped("\n\r\t\u{b}\u{8}\u{1b}[2J\u{7f}\0"),
            r"\n\r\t\v\b\x1b[2J\x7f\x00"
        );
        assert_eq!(escaped("\u{e4}"), r"\xc3\xa4");
        assert_eq!(escaped(""), "");
    }

    #[test]
    fn every_byte_at_every_place() {
        for byte in 0..=255 {
            for place in 0..40 {
                let mut text = [b'a'; 40];
                text[place] = byte;
                let mut line = Vec::new();
                apache(&text, &mut line);
                let is_plain = (0x20..0x7f).contains(&byte) && byte != b'"' && byte != b'\\';
                assert_eq!(line == text, is_plain, "{byte} at {place}");
                assert_eq!(line[..place], text[..place]);
                assert!(line.ends_with(&text[place + 1..]));
            }
        }
    }

    #[test]
    fn long_fields_are_cut() {
        let text = "a".repeat(FIELD_MAX + 1);
        assert_eq!(escaped(&text).len(), FIELD_MAX + 3);
        assert_eq!(bounded(&text).len(), FIELD_MAX + 3);
        let text = "\u{20ac}".repeat(FIELD_MAX);
        assert!(bounded(&text).ends_with("\u{20ac}..."));
        assert!(bounded(&text).len() <= FIELD_MAX + 3);
        assert_eq!(bounded("short"), "short");
    }
}
