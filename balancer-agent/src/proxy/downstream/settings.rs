//! A frontend's configuration together with what was made from it.

use std::sync::Arc;
use std::time::Duration;

use super::tls::TlsStore;
use crate::model::http::HttpFrontend;

/// What connections of a frontend go by; replaced as a whole on reload.
pub(super) struct Settings {
    /// The configuration.
    pub frontend: Arc<HttpFrontend>,
    /// Certificates, when it is TLS.
    pub tls: Option<Arc<TlsStore>>,
    /// How long running requests may go on once the frontend goes.
    pub drain: Duration,
}
