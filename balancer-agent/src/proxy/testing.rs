//! What tests of several parts of the web tier stand on.

use std::time::Duration;

/// Longest time that a test may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Runs a future as the web tier does: on one thread, on a `LocalSet`.
pub fn local<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let limited = async {
        tokio::time::timeout(LIMIT, future)
            .await
            .expect("the test takes too long")
    };
    tokio::task::LocalSet::new().block_on(&runtime, limited)
}
