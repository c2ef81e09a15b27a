//! Servers that die and come back under load: nobody gets another's answer, nothing that
//! may have been done is done again, and nothing that can be answered fails.
//! `cargo xtask bench http-chaos` does the same for a minute.

use std::time::Duration;

use balancer_tests::bench::chaos;

#[test]
fn servers_die_and_come_back() {
    let outcome = chaos::play(Duration::from_secs(12), Duration::from_millis(2500));
    println!("{outcome}");
    outcome
        .judge()
        .unwrap_or_else(|what| panic!("{what}\n{outcome}"));
}
