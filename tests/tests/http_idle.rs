//! Many who only hold a connection, or are slow, beside those who are served.
//! `cargo xtask bench http-idle` does it with ten thousand.

use balancer_tests::bench::idle;

#[test]
fn idle_and_slow_clients_cost_little() {
    let outcome = idle::play(2_000, 200, std::time::Duration::from_secs(3));
    let outcome = outcome.unwrap_or_else(|error| panic!("{error:#}"));
    println!("{outcome}");
    // A debug build has larger stacks; the target of 4 KiB is the benchmark's.
    assert!(outcome.per_idle < 16 << 10, "{outcome}");
    assert_eq!(outcome.failed, 0, "{outcome}");
    assert!(
        outcome.slow_left > 0 && outcome.idle_left == 2_000,
        "{outcome}"
    );
}
