//! An application server for tests of the web tier; see [`balancer_tests::http::app`].

use balancer_tests::http::app;
use clap::Parser as _;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let local = tokio::task::LocalSet::new();
    local.run_until(app::run(app::Arguments::parse())).await
}
