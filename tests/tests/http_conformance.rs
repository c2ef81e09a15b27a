//! The table of raw requests, sent through the balancer to a backend that records every
//! byte: what may pass passes, what is ambiguous is refused, and no two readers of what
//! was forwarded see different requests.

use balancer_tests::agent::Agent;
use balancer_tests::http::recorder::Recorder;
use balancer_tests::http::rows::{self, Target};
use balancer_tests::http::web::{HTTP, NO_CHECK, app_address, frontend, pool};
use balancer_tests::netns::Netns;

/// Runs all rows; fails with every difference.
fn run(ns: &Netns, recorder: &Recorder) {
    let rows = rows::all();
    let only = std::env::var("ROW").unwrap_or_default();
    let target = Target {
        ns,
        frontend: HTTP,
        recorder,
    };
    let mut wrong = Vec::new();
    for row in rows.iter().filter(|row| row.name.contains(&only)) {
        if let Err(why) = rows::check(&target, row) {
            let mut bytes = row.pieces.concat();
            bytes.truncate(400);
            let sent = String::from_utf8_lossy(&bytes).escape_debug().to_string();
            wrong.push(format!("{}: {why}\n      sent: {sent}", row.name));
        }
    }
    println!("{} rows sent, {} differ", rows.len(), wrong.len());
    assert!(wrong.is_empty(), "{}\n", wrong.join("\n"));
}

#[test]
fn requests_that_could_be_read_differently_are_not_forwarded() {
    let ns = Netns::new();
    let recorder = Recorder::start(&ns, app_address(0));
    let mut agent = Agent::prepare_plain(&ns, &(frontend("") + &pool(1, NO_CHECK)));
    agent.run();
    run(&ns, &recorder);
}
