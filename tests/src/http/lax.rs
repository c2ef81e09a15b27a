//! Readers of HTTP/1 requests with the habits that real servers have had: where two of
//! them see different requests in the same bytes, one can be smuggled past the other.
//! Bytes that are clean mean the same to all of them.

/// Habits of a reader.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// What they are.
    pub name: &'static str,
    lines: Lines,
    /// Which of several lengths counts.
    lengths: Which,
    /// How digits of a length are read.
    digits: Digits,
    coding: Coding,
    /// A length counts although there is a coding.
    length_wins: bool,
    /// Codings are unknown in HTTP/1.0.
    old_ignores_coding: bool,
    folding: Folding,
    /// Blanks around a field's name are no part of it.
    blank_names: bool,
    /// `_` in a field's name is as good as `-`.
    underscores: bool,
    /// A field's value ends at NUL.
    c_strings: bool,
    chunks: Chunks,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lines {
    /// CR LF.
    Strict,
    /// LF, with or without CR.
    Lf,
    /// CR, LF or both.
    Any,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    First,
    Last,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Digits {
    Strict,
    /// As many as there are, after blanks and a sign.
    Leading,
    /// As C's strtol with base 0.
    Prefixed,
    /// In 32 bits.
    Narrow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coding {
    /// The last one is `chunked`.
    Last,
    /// The first one is.
    First,
    /// The word is in there somewhere.
    Somewhere,
    /// It is the only one, in these letters.
    Exact,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Folding {
    /// Part of the line before.
    Joined,
    /// A field like any other.
    Own,
    /// Not there.
    Dropped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chunks {
    Strict,
    /// Size ends at the first character that is no digit.
    Leading,
    /// Also with `0x`.
    Prefixed,
    /// In 32 bits.
    Narrow,
}

/// RFC 9112 to the letter.
pub const STRICT: Habits = Habits {
    name: "strict",
    lines: Lines::Strict,
    lengths: Which::First,
    digits: Digits::Strict,
    coding: Coding::Last,
    length_wins: false,
    old_ignores_coding: false,
    folding: Folding::Joined,
    blank_names: false,
    underscores: false,
    c_strings: false,
    chunks: Chunks::Strict,
};

/// Everything that is judged by.
pub const ALL: &[Habits] = &[
    STRICT,
    Habits {
        name: "line feeds end lines",
        lines: Lines::Lf,
        ..STRICT
    },
    Habits {
        name: "carriage returns end lines",
        lines: Lines::Any,
        ..STRICT
    },
    Habits {
        name: "the last length counts",
        lengths: Which::Last,
        ..STRICT
    },
    Habits {
        name: "lengths by their leading digits",
        digits: Digits::Leading,
        ..STRICT
    },
    Habits {
        name: "lengths by strtol",
        digits: Digits::Prefixed,
        ..STRICT
    },
    Habits {
        name: "lengths in 32 bits",
        digits: Digits::Narrow,
        chunks: Chunks::Narrow,
        ..STRICT
    },
    Habits {
        name: "length over coding",
        length_wins: true,
        ..STRICT
    },
    Habits {
        name: "the first coding counts",
        coding: Coding::First,
        ..STRICT
    },
    Habits {
        name: "chunked anywhere",
        coding: Coding::Somewhere,
        ..STRICT
    },
    Habits {
        name: "chunked by letter",
        coding: Coding::Exact,
        ..STRICT
    },
    Habits {
        name: "no codings in HTTP/1.0",
        old_ignores_coding: true,
        ..STRICT
    },
    Habits {
        name: "folded lines are fields",
        folding: Folding::Own,
        blank_names: true,
        ..STRICT
    },
    Habits {
        name: "folded lines are dropped",
        folding: Folding::Dropped,
        ..STRICT
    },
    Habits {
        name: "blanks around names",
        blank_names: true,
        ..STRICT
    },
    Habits {
        name: "underscores are dashes",
        underscores: true,
        ..STRICT
    },
    Habits {
        name: "values end at NUL",
        c_strings: true,
        ..STRICT
    },
    Habits {
        name: "chunk sizes by their leading digits",
        chunks: Chunks::Leading,
        lines: Lines::Lf,
        ..STRICT
    },
    Habits {
        name: "chunk sizes with 0x",
        chunks: Chunks::Prefixed,
        ..STRICT
    },
    Habits {
        name: "everything goes",
        lines: Lines::Any,
        lengths: Which::Last,
        digits: Digits::Prefixed,
        coding: Coding::Somewhere,
        length_wins: true,
        old_ignores_coding: true,
        folding: Folding::Own,
        blank_names: true,
        underscores: true,
        c_strings: true,
        chunks: Chunks::Prefixed,
    },
];

/// A request as a reader sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Method.
    pub method: String,
    /// Target.
    pub target: String,
    /// Version.
    pub version: String,
    /// Fields; names in lower case.
    pub fields: Vec<(String, String)>,
    /// Without framing.
    pub body: Vec<u8>,
    /// The body came in chunks.
    pub chunked: bool,
    /// The body came with a length.
    pub length: bool,
}

impl Request {
    /// What has to look alike to all readers.
    fn gist(&self) -> (&str, &str, &[u8]) {
        (&self.method, &self.target, &self.body)
    }
}

/// Requests in these bytes, and how many bytes are left of one that is not whole.
pub fn read(mut bytes: &[u8], habits: &Habits) -> (Vec<Request>, usize) {
    let mut requests = Vec::new();
    while !bytes.is_empty() {
        let (request, used) = first(bytes, habits);
        let Some(request) = request else { break };
        requests.push(request);
        bytes = &bytes[used..];
    }
    (requests, bytes.len())
}

/// Says where readers disagree about these bytes.
///
/// # Errors
/// Who sees what.
pub fn agree(bytes: &[u8]) -> Result<Vec<Request>, String> {
    let (requests, left) = read(bytes, &STRICT);
    for habits in &ALL[1..] {
        let (other, other_left) = read(bytes, habits);
        let same = other.len() == requests.len()
            && left == other_left
            && other
                .iter()
                .zip(&requests)
                .all(|(a, b)| a.gist() == b.gist());
        if !same {
            let gist = |all: &[Request]| -> Vec<String> {
                let one = |r: &Request| format!("{} {} + {}", r.method, r.target, r.body.len());
                all.iter().map(one).collect()
            };
            return Err(format!(
                "a strict reader sees {:?} and {left} bytes more, where {:?} applies {:?} and {other_left}: {}",
                gist(&requests),
                habits.name,
                gist(&other),
                String::from_utf8_lossy(bytes).escape_debug(),
            ));
        }
    }
    Ok(requests)
}

/// Whether the head asks for 100 before its body.
pub fn expects_continue(bytes: &[u8]) -> bool {
    let head = head(bytes, &STRICT);
    head.is_some_and(|(request, _)| {
        let mut fields = request.fields.iter();
        fields.any(|(name, value)| name == "expect" && value.eq_ignore_ascii_case("100-continue"))
    })
}

/// The first request, and the bytes that it takes.
pub fn first(bytes: &[u8], habits: &Habits) -> (Option<Request>, usize) {
    let Some((mut request, start)) = head(bytes, habits) else {
        return (None, 0);
    };
    let rest = &bytes[start..];
    let all = |name: &str| -> Vec<&str> {
        let named = request.fields.iter().filter(|(have, _)| have == name);
        named.map(|(_, value)| value.as_str()).collect()
    };
    let codings = all("transfer-encoding").join(",");
    let old = habits.old_ignores_coding && request.version == "HTTP/1.0";
    let chunked = !old && is_chunked(&codings, habits.coding);
    let lengths: Vec<&str> = all("content-length");
    let length = match habits.lengths {
        Which::First => lengths.first(),
        Which::Last => lengths.last(),
    };
    let length = length.map(|text| number(text, habits));
    let by_length = length.is_some() && (!chunked || habits.length_wins);
    if by_length {
        let length = length.flatten().unwrap_or(0);
        let Ok(length) = usize::try_from(length) else {
            return (None, 0);
        };
        if rest.len() < length {
            return (None, 0);
        }
        request.length = true;
        request.body = rest[..length].to_vec();
        return (Some(request), start + length);
    }
    if chunked {
        let Some((body, used)) = chunks(rest, habits) else {
            return (None, 0);
        };
        request.chunked = true;
        request.body = body;
        return (Some(request), start + used);
    }
    (Some(request), start)
}

fn head(bytes: &[u8], habits: &Habits) -> Option<(Request, usize)> {
    let mut at = 0;
    let mut request = Request::default();
    // Empty lines before a request are passed over (RFC 9112, 2.2).
    let mut first = line(bytes, &mut at, habits.lines)?;
    while first.is_empty() {
        first = line(bytes, &mut at, habits.lines)?;
    }
    let mut words = first.split(' ').filter(|word| !word.is_empty());
    request.method = words.next().unwrap_or_default().to_owned();
    request.target = words.next().unwrap_or_default().to_owned();
    request.version = words.next().unwrap_or_default().to_owned();
    loop {
        let text = line(bytes, &mut at, habits.lines)?;
        if text.is_empty() {
            return Some((request, at));
        }
        if text.starts_with([' ', '\t']) {
            match (habits.folding, request.fields.last_mut()) {
                (Folding::Joined, Some((_, value))) => {
                    value.push(' ');
                    value.push_str(text.trim());
                    continue;
                }
                (Folding::Dropped, _) => continue,
                _ => {}
            }
        }
        let (name, value) = text.split_once(':').unwrap_or((&text, ""));
        let mut name = name.to_ascii_lowercase();
        if habits.blank_names {
            name = name.trim().to_owned();
        }
        if habits.underscores {
            name = name.replace('_', "-");
        }
        let mut value = value.trim_matches([' ', '\t']).to_owned();
        if habits.c_strings
            && let Some(at) = value.find('\0')
        {
            value.truncate(at);
        }
        request.fields.push((name, value));
    }
}

/// A line without its end; nothing when it has none.
fn line(bytes: &[u8], at: &mut usize, lines: Lines) -> Option<String> {
    let rest = &bytes[*at..];
    let (end, next) = match lines {
        Lines::Strict => {
            let end = rest.windows(2).position(|w| w == b"\r\n")?;
            (end, end + 2)
        }
        Lines::Lf => {
            let end = rest.iter().position(|&b| b == b'\n')?;
            let text = match end.checked_sub(1) {
                Some(before) if rest[before] == b'\r' => before,
                _ => end,
            };
            (text, end + 1)
        }
        Lines::Any => {
            let end = rest.iter().position(|&b| b == b'\n' || b == b'\r')?;
            let both = rest[end] == b'\r' && rest.get(end + 1) == Some(&b'\n');
            (end, end + 1 + usize::from(both))
        }
    };
    *at += next;
    Some(rest[..end].iter().map(|&byte| char::from(byte)).collect())
}

fn is_chunked(codings: &str, coding: Coding) -> bool {
    let mut all = codings.split(',').map(str::trim);
    match coding {
        Coding::Last => all
            .next_back()
            .is_some_and(|c| c.eq_ignore_ascii_case("chunked")),
        Coding::First => all
            .next()
            .is_some_and(|c| c.eq_ignore_ascii_case("chunked")),
        Coding::Somewhere => codings.to_ascii_lowercase().contains("chunked"),
        Coding::Exact => codings == "chunked",
    }
}

fn number(text: &str, habits: &Habits) -> Option<u64> {
    let leading = |text: &str, radix: u32| {
        let digits: String = text.chars().take_while(|c| c.is_digit(radix)).collect();
        u64::from_str_radix(&digits, radix).ok()
    };
    match habits.digits {
        Digits::Strict => text
            .bytes()
            .all(|b| b.is_ascii_digit())
            .then(|| text.parse().ok())?,
        Digits::Leading => leading(text.trim_start().trim_start_matches('+'), 10),
        Digits::Narrow => text.parse::<u64>().ok().map(|n| n & 0xffff_ffff),
        Digits::Prefixed => {
            let text = text.trim_start().trim_start_matches('+');
            match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
                Some(digits) => leading(digits, 16),
                None if text.starts_with('0') && text.len() > 1 => leading(text, 8),
                None => leading(text, 10),
            }
        }
    }
}

fn chunks(bytes: &[u8], habits: &Habits) -> Option<(Vec<u8>, usize)> {
    let (mut at, mut body) = (0, Vec::new());
    loop {
        let text = line(bytes, &mut at, habits.lines)?;
        let size = text.split(';').next().unwrap_or_default();
        let size = match habits.chunks {
            Chunks::Strict | Chunks::Narrow => size,
            Chunks::Leading => size.trim(),
            Chunks::Prefixed => size.trim().trim_start_matches("0x"),
        };
        let digits: String = match habits.chunks {
            Chunks::Strict | Chunks::Narrow => size.to_owned(),
            _ => size.chars().take_while(char::is_ascii_hexdigit).collect(),
        };
        let size = u64::from_str_radix(&digits, 16).ok()?;
        let size = match habits.chunks {
            Chunks::Narrow => size & 0xffff_ffff,
            _ => size,
        };
        if size == 0 {
            while !line(bytes, &mut at, habits.lines)?.is_empty() {}
            return Some((body, at));
        }
        let end = at.checked_add(usize::try_from(size).ok()?)?;
        body.extend_from_slice(bytes.get(at..end)?);
        at = end;
        if !line(bytes, &mut at, habits.lines)?.is_empty() {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clean_bytes_mean_the_same_to_all() {
        let clean: &[u8] = b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello\
            POST /b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n\
            GET /c HTTP/1.1\r\nHost: a\r\n\r\n";
        let requests = agree(clean).unwrap();
        let gist: Vec<(&str, usize)> = requests
            .iter()
            .map(|r| (r.target.as_str(), r.body.len()))
            .collect();
        assert_eq!(gist, [("/a", 5), ("/b", 5), ("/c", 0)]);
        assert!(requests[0].length && requests[1].chunked && !requests[2].chunked);
    }

    #[test]
    fn every_habit_finds_something() {
        let body = |fields: &str, body: &str| {
            format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n{body}")
        };
        let smuggled = "GET /x HTTP/1.1\r\nHost: a\r\n\r\n";
        let chunk = "0\r\n\r\n";
        let dirty = [
            body("X: a\nContent-Length: 28", smuggled),
            body("X: a\rContent-Length: 28", smuggled),
            body("Content-Length: 0\r\nContent-Length: 28", smuggled),
            body("Content-Length: 28x", smuggled),
            body("Content-Length: 034", smuggled),
            body("Content-Length: 4294967324", smuggled),
            body("Content-Length: 5\r\nTransfer-Encoding: chunked", chunk),
            body("Transfer-Encoding: chunked, x", chunk),
            body("Transfer-Encoding: x-chunked", chunk),
            body("Transfer-Encoding: CHUNKED", chunk),
            body("Transfer-Encoding: chunked", chunk).replace("1.1\r\nHost", "1.0\r\nHost"),
            body("X: a\r\n Content-Length: 28", smuggled),
            body("Content-Length:\r\n 28", smuggled),
            body("Content-Length: 2\r\n 8", smuggled),
            body("Content-Length : 28", smuggled),
            body("Content_Length: 28", smuggled),
            body("Content-Length: 28\0", smuggled),
            body("Transfer-Encoding: chunked", "5 \nhello\n0\n\n"),
            body("Transfer-Encoding: chunked", "0x5\r\nhello\r\n0\r\n\r\n"),
        ];
        for text in &dirty {
            assert!(agree(text.as_bytes()).is_err(), "{text:?}");
        }
        for habits in &ALL[1..] {
            let differs = |text: &String| {
                let gist = |habits| {
                    let (requests, left) = read(text.as_bytes(), habits);
                    let bodies: Vec<usize> = requests.iter().map(|r| r.body.len()).collect();
                    (bodies, left)
                };
                gist(habits) != gist(&STRICT)
            };
            assert!(dirty.iter().any(differs), "{}", habits.name);
        }
    }
}
