//! The table of raw requests: what is sent, byte for byte, and what has to become of it.
//! Rows are grouped by what they are about; [`all`] has them together.
//!
//! Sections are those of RFC 9112 (message syntax) and RFC 9110 (semantics).

mod chunks;
mod connection;
mod fields;
mod lengths;
mod lines;
mod run;

pub use run::{Target, check};

/// One row.
#[derive(Clone, Debug)]
pub struct Row {
    /// Unique.
    pub name: &'static str,
    /// What is sent; pieces are sent apart, a moment between them.
    pub pieces: Vec<Vec<u8>>,
    /// What has to become of it.
    pub expect: Expect,
}

/// What has to become of a row.
#[derive(Clone, Debug)]
pub enum Expect {
    /// These reach the backend, in this order; each is answered 200; the connection stays.
    Kept(Vec<Forwarded>),
    /// Likewise, but the connection is closed after the last answer.
    Closed(Vec<Forwarded>),
    /// One answer with one of these statuses, then the connection is closed; nothing
    /// reaches the backend.
    Refused(&'static [u16]),
    /// These reach the backend and are answered; what follows them is refused.
    ThenRefused(Vec<Forwarded>, &'static [u16]),
    /// The standards leave both open: refused with one of these, or forwarded as said.
    Either(&'static [u16], Vec<Forwarded>),
    /// Answered with one of these by the balancer itself, whatever becomes of the
    /// connection; nothing reaches the backend.
    Answered(&'static [u16]),
    /// The head is good, the body is not: no whole request reaches the backend, the answer
    /// is one of these or none, and the connection is closed.
    Broken(&'static [u16]),
}

/// A request as the backend has to see it.
#[derive(Clone, Debug)]
pub struct Forwarded {
    /// Method.
    pub method: &'static str,
    /// Target; any when empty.
    pub target: &'static str,
    /// The body, without framing.
    pub body: &'static str,
    /// How it is framed.
    pub framing: Framing,
    /// Fields that must be there.
    pub has: Vec<(&'static str, &'static str)>,
    /// Names of fields that must not be there.
    pub lacks: Vec<&'static str>,
}

/// Framing of a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Neither length nor coding, or a length of 0.
    None,
    /// A length.
    Length,
    /// Chunks.
    Chunked,
    /// A length or chunks.
    Any,
}

impl Forwarded {
    /// With a field that must be there.
    #[must_use]
    pub fn has(mut self, name: &'static str, value: &'static str) -> Self {
        self.has.push((name, value));
        self
    }

    /// Without these fields.
    #[must_use]
    pub fn lacks(mut self, names: &[&'static str]) -> Self {
        self.lacks.extend(names);
        self
    }
}

/// A GET without body.
pub fn get(target: &'static str) -> Forwarded {
    sent("GET", target, "", Framing::None)
}

/// A POST whose body comes by length.
pub fn post(target: &'static str, body: &'static str) -> Forwarded {
    sent("POST", target, body, Framing::Length)
}

/// A POST whose body comes in chunks (the balancer may know its length and say so).
pub fn chunked(target: &'static str, body: &'static str) -> Forwarded {
    sent("POST", target, body, Framing::Any)
}

/// Any request.
pub fn sent(
    method: &'static str,
    target: &'static str,
    body: &'static str,
    framing: Framing,
) -> Forwarded {
    Forwarded {
        method,
        target,
        body,
        framing,
        has: Vec::new(),
        lacks: Vec::new(),
    }
}

/// Every row.
pub fn all() -> Vec<Row> {
    let mut rows = Vec::new();
    lines::rows(&mut rows);
    fields::rows(&mut rows);
    lengths::rows(&mut rows);
    chunks::rows(&mut rows);
    connection::rows(&mut rows);
    rows
}

/// A row that is sent at once.
fn row(rows: &mut Vec<Row>, name: &'static str, bytes: impl AsRef<[u8]>, expect: Expect) {
    rows.push(Row {
        name,
        pieces: vec![bytes.as_ref().to_vec()],
        expect,
    });
}

#[cfg(test)]
mod tests {
    #[test]
    fn rows_are_many_and_named_once() {
        let rows = super::all();
        assert!(rows.len() >= 120, "{}", rows.len());
        let mut names: Vec<_> = rows.iter().map(|row| row.name).collect();
        names.sort_unstable();
        let twice: Vec<_> = names.windows(2).filter(|w| w[0] == w[1]).collect();
        assert!(twice.is_empty(), "{twice:?}");
    }
}
