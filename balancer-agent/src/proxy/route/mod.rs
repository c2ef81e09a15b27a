//! Where a request goes: site by host, path normalised once, mount and exclusion by path;
//! and the answers that need no backend.
//!
//! - `path.rs`: the one path of a request ([`NormalPath`]);
//! - `pattern.rs`: mod_jk's patterns, compiled ([`pattern::Patterns`]);
//! - `host.rs`: which site a host name belongs to;
//! - `router.rs`: [`Router`], which puts these together;
//! - `rewrite.rs`: changes of headers on the way;
//! - `reply.rs`: redirects, fixed responses, maintenance and error pages.

pub mod host;
pub mod path;
pub mod pattern;
pub mod reply;
pub mod rewrite;
pub mod router;

pub use path::{NormalPath, PathError};
pub use reply::{maintenance, redirect, respond, status_page, to_https};
pub use rewrite::{rewrite_request, rewrite_response};
pub use router::{Found, Router};
