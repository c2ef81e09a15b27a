//! Static files, and compression of any response.
//!
//! - `root.rs`: the document root, and opening files so that none is outside of it;
//! - `serve.rs`: from a request to its response ([`serve`]);
//! - `condition.rs`: entity tags, dates, preconditions (RFC 9110, 13);
//! - `range.rs`: byte ranges (RFC 9110, 14);
//! - `body.rs`: reading files into bodies;
//! - `kind.rs`: media types;
//! - `encoding.rs`: what a client accepts (RFC 9110, 12.5.3);
//! - `compress.rs`: gzip and brotli on the fly ([`compress`]).

pub mod body;
pub mod compress;
pub mod condition;
pub mod encoding;
pub mod kind;
pub mod range;
pub mod root;
pub mod serve;

pub use compress::compress;
pub use root::{Documents, OpenError};
pub use serve::{FileRequest, serve};
