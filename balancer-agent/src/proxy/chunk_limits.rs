//! How much of the chunked coding (RFC 9112, 7.1) is taken, from clients and from backends
//! alike.

/// Digits of a chunk's size; so many can't overflow 64 bits, and zeros in front of them are
/// no good sign.
pub const SIZE_DIGITS: usize = 15;

/// Bytes between a chunk's size and the end of its line: its extensions, and blanks.
pub const EXTENSION: usize = 256;

/// The same over all chunks of a request's body. Responses have no such limit: they may be
/// streams without end, and backends have no reason to have us work for nothing.
pub const EXTENSIONS: usize = 4096;

/// Bytes of a trailer section; hyper has the same limit.
pub const TRAILERS: usize = 16 << 10;

/// Fields of a trailer section; hyper takes no more without being told.
pub const TRAILER_FIELDS: usize = 100;
