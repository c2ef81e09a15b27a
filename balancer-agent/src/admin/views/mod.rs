//! The node's statistics as scripts for other balancers read them: HAProxy's CSV, and the
//! list of mod_jk's status worker. Read-only.

mod haproxy;
mod jk;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use super::node::Node;
use crate::model::http::StatsFormat;
use crate::proxy::stats::{View, Views};

/// What HAProxy says its CSV is.
const PLAIN: &str = "text/plain; charset=utf-8";

impl Views for Node {
    fn view(
        self: Arc<Self>,
        format: StatsFormat,
        query: String,
    ) -> Pin<Box<dyn Future<Output = View> + Send>> {
        Box::pin(async move {
            if format == StatsFormat::JkStatus
                && let Some(refused) = jk::refused(&query)
            {
                return refused;
            }
            match (self.whole().await, format) {
                (Ok((status, config)), StatsFormat::HaproxyCsv) => View {
                    status: 200,
                    content_type: PLAIN,
                    text: haproxy::csv(&status, &config),
                },
                (Ok((status, config)), StatsFormat::JkStatus) => {
                    jk::list(&status, &config, &query, wall_clock())
                }
                (Err(refusal), _) => View {
                    status: 503,
                    content_type: PLAIN,
                    text: format!("{refusal}\n"),
                },
            }
        })
    }
}

/// What time it is: mod_jk's view says so.
#[expect(
    clippy::disallowed_methods,
    reason = "the view tells people the time of day; nothing else depends on it"
)]
fn wall_clock() -> std::time::SystemTime {
    std::time::SystemTime::now()
}
