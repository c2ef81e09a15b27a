//! A changed configuration file under load: what it does not mention goes on untouched.

use std::net::SocketAddr;
use std::time::Duration;

use balancer_tests::agent::Agent;
use balancer_tests::bed::{Bed, NOT_PASSIVE, QUICK_CHECK, backends4, frontend, pool, vip4};
use balancer_tests::load::held::{Held, Kept};
use balancer_tests::load::{Ask, Failure, Stream, sequential};
use balancer_tests::process::{BOUND, wait_until};
use balancer_tests::server::ECHO;
use balancer_tests::topology::Lab;
use nix::sys::signal::Signal;

const RATE: u32 = 500;
const EVERY: Duration = Duration::from_millis(20);

/// What a test changes.
#[derive(Clone)]
struct Wish {
    /// By server; nothing: not a backend.
    weights: [Option<u32>; 3],
    second_frontend: bool,
}

const USUAL: Wish = Wish {
    weights: [Some(1), Some(1), Some(1)],
    second_frontend: false,
};

fn text(lab: &Lab, wish: &Wish) -> String {
    let keys = format!("{QUICK_CHECK}{NOT_PASSIVE}");
    let mut all = backends4(lab, ECHO, &wish.weights.map(|w| w.unwrap_or(0)));
    all.retain(|(name, _, _)| {
        let number: usize = name[1..].parse().expect("a number");
        wish.weights[number].is_some()
    });
    let mut text = frontend("echo", vip4(lab, 1, 7), "tcp", "echo") + &pool("echo", &keys, &all);
    // Never changed by anything here: the control group.
    text += &(frontend("other", vip4(lab, 2, 7), "tcp", "other")
        + &pool("other", &keys, &backends4(lab, ECHO, &[1, 1, 1])));
    if wish.second_frontend {
        text += &frontend("second", vip4(lab, 3, 7), "tcp", "echo");
    }
    text
}

struct Scene {
    bed: Bed,
    echo: SocketAddr,
    stream: Stream,
    held: Held,
    other: Held,
}

fn scene(wish: &Wish) -> Scene {
    let bed = Bed::new(3, |lab| text(lab, wish));
    let echo = vip4(&bed.lab, 1, 7);
    let held = Held::open(&bed.lab.client, echo, 30, EVERY);
    let other = vip4(&bed.lab, 2, 7);
    let stream = Stream::start(&bed.lab.client, other, Ask::Name, RATE);
    let other = Held::open(&bed.lab.client, other, 30, EVERY);
    stream.wait_for(u64::from(RATE) / 4);
    Scene {
        bed,
        echo,
        stream,
        held,
        other,
    }
}

impl Scene {
    fn apply(&self, wish: &Wish) {
        self.bed.agent.reconfigure(&text(&self.bed.lab, wish));
    }

    /// Who answers how many requests. Asked again when a server was passed over because it
    /// had a connection from the same client port by way of the other frontend, whose
    /// load goes on beside this: the turns are not exact then, and need not be.
    fn ask(&self, count: usize) -> [usize; 3] {
        let conflicts = || self.bed.reason("tuple_conflict");
        for _ in 0..5 {
            let before = conflicts();
            let answers = self.ask_once(count);
            if conflicts() == before {
                return answers;
            }
        }
        panic!("five times in a row a client port was taken");
    }

    fn ask_once(&self, count: usize) -> [usize; 3] {
        let report = sequential(&self.bed.lab.client, self.echo, &Ask::Name, count);
        assert_eq!(report.failed(), 0, "{:?}", report.failures());
        let counts = report.distribution();
        ["s0", "s1", "s2"].map(|name| counts.get(name).copied().unwrap_or(0))
    }

    /// Nothing failed: neither on the frontend that changes nor on the other.
    fn assert_untouched(self) -> Bed {
        self.stream.wait_for(u64::from(RATE) / 4);
        let report = self.stream.stop();
        assert_eq!(report.failed(), 0, "{:?}", report.failures());
        // While the load goes on beside the held ones, only the sum is exact.
        let spread = report.spread(&["s0", "s1", "s2"]);
        assert!(spread <= 1 + 30, "{:?}", report.distribution());
        let whole = |kept: &[Kept]| kept.iter().all(|k| k.failure.is_none() && k.exchanges > 0);
        let (held, other) = (self.held.finish(), self.other.finish());
        assert!(whole(&held), "{held:?}");
        assert!(whole(&other), "{other:?}");
        self.bed
    }
}

#[test]
fn weights_change() {
    let scene = scene(&USUAL);
    assert_eq!(scene.ask(30), [10, 10, 10]);
    scene.apply(&Wish {
        weights: [Some(5), Some(1), Some(1)],
        ..USUAL
    });
    assert_eq!(scene.ask(70), [50, 10, 10]);
    scene.apply(&Wish {
        weights: [Some(1), Some(0), Some(2)],
        ..USUAL
    });
    assert_eq!(scene.ask(30), [10, 0, 20]);
    scene.apply(&USUAL);
    assert_eq!(scene.ask(30), [10, 10, 10]);
    scene.assert_untouched();
}

#[test]
fn a_backend_is_removed_and_its_flows_finish() {
    let scene = scene(&USUAL);
    assert_eq!(scene.held.distribution()["s1"], 10);
    scene.apply(&Wish {
        weights: [Some(1), None, Some(1)],
        ..USUAL
    });
    assert_eq!(scene.ask(30), [15, 0, 15]);
    let status = scene.bed.agent.status();
    let lingering = status["lingering"].as_array().expect("a list");
    let left = lingering.iter().find(|l| l["kind"] == "backend");
    assert_eq!(left.expect("the removed one")["flows"], 10, "{lingering:?}");
    // The removed server's connections live on for a while.
    scene.stream.wait_for(u64::from(RATE));
    let bed = scene.assert_untouched();
    wait_until("the removed backend to be forgotten", BOUND * 3, || {
        bed.agent.status()["lingering"] == serde_json::json!([])
    });
}

#[test]
fn a_backend_is_added() {
    let scene = scene(&Wish {
        weights: [Some(1), Some(1), None],
        ..USUAL
    });
    assert_eq!(scene.ask(20), [10, 10, 0]);
    scene.apply(&USUAL);
    // It is down until a check has proved it.
    scene.bed.agent.wait_health("echo", "s2", "up");
    assert_eq!(scene.ask(30), [10, 10, 10]);
    scene.assert_untouched();
}

/// Turns that were passed on because the server has a flow of the client's port already.
fn tuple_conflicts(agent: &Agent) -> usize {
    let status = agent.status();
    let reasons = status["reasons"].as_array().expect("reasons");
    let found = reasons.iter().find(|r| r["reason"] == "tuple_conflict");
    found.map_or(0, |r| r["count"].as_u64().expect("a count") as usize)
}

#[test]
fn a_frontend_comes_and_goes() {
    let scene = scene(&USUAL);
    let second = vip4(&scene.bed.lab, 3, 7);
    scene.apply(&Wish {
        second_frontend: true,
        ..USUAL
    });
    let report = sequential(&scene.bed.lab.client, second, &Ask::Name, 30);
    assert_eq!(report.failed(), 0, "{:?}", report.failures());
    // A port that the client has open through the other frontend as well can't go to the
    // same server: its turn passes to the next one.
    let passed_on = tuple_conflicts(&scene.bed.agent);
    let spread = report.spread(&["s0", "s1", "s2"]);
    assert!(spread <= 2 * passed_on, "{:?}", report.distribution());
    let open = Held::open(&scene.bed.lab.client, second, 9, EVERY);
    assert_eq!(open.broken(), 0);

    scene.apply(&USUAL);
    let report = sequential(&scene.bed.lab.client, second, &Ask::Name, 1);
    // Nobody has the address now: the balancer's own routing says so.
    assert_eq!(report.failed(), 1, "{:?}", report.distribution());
    scene.stream.wait_for(u64::from(RATE) / 2);
    let kept = open.finish();
    assert!(kept.iter().all(|k| k.failure.is_none()), "{kept:?}");
    assert_eq!(scene.ask(30), [10, 10, 10]);
    scene.assert_untouched();
}

#[test]
fn a_bad_file_changes_nothing() {
    let scene = scene(&USUAL);
    let agent = &scene.bed.agent;
    let generation = agent.status()["node"]["generation_desired"].clone();
    let good = text(&scene.bed.lab, &USUAL);
    for bad in [
        "[[frontend]\n",
        "nonsense = 1\n",
        "[[frontend]]\nname = \"x\"\n",
    ] {
        agent.write_config(&format!("{good}\n{bad}"));
        let said = agent.command(&["reload"]);
        assert_eq!(said.code, Some(1), "{said:?}");
        assert!(said.err.contains("balancer.toml"), "{said:?}");
        assert_eq!(scene.ask(9), [3, 3, 3]);
    }
    agent.write_config(&good.replace("weight = 1", "weight = 300"));
    assert_eq!(agent.command(&["reload"]).code, Some(1));
    let status = agent.status();
    assert_eq!(
        status["node"]["generation_desired"], generation,
        "{status:#}"
    );
    assert_eq!(status["frontends"].as_array().map(Vec::len), Some(2));
    // With the file mended, all is well again.
    agent.reconfigure(&good);
    assert_eq!(scene.ask(9), [3, 3, 3]);
    scene.assert_untouched();
}

#[test]
fn sighup_reloads() {
    let mut scene = scene(&USUAL);
    let wish = Wish {
        weights: [Some(2), Some(1), Some(1)],
        ..USUAL
    };
    scene.bed.agent.write_config(&text(&scene.bed.lab, &wish));
    scene.bed.agent.signal(Signal::SIGHUP);
    wait_until("the new weight to be in force", BOUND, || {
        scene.bed.agent.backend("echo", "s0")["weight"] == 2 && scene.ask(8) == [4, 2, 2]
    });
    scene.bed.agent.write_config("nonsense = 1\n");
    scene.bed.agent.signal(Signal::SIGHUP);
    wait_until("the agent to say what is wrong", BOUND, || {
        scene.bed.agent.log().contains("nonsense")
    });
    assert!(scene.bed.agent.running());
    assert_eq!(scene.ask(8), [4, 2, 2]);
    scene.assert_untouched();
}

#[test]
fn connections_fail_only_while_nobody_is_there() {
    let scene = scene(&USUAL);
    scene.apply(&Wish {
        weights: [Some(0), Some(0), Some(0)],
        ..USUAL
    });
    let report = sequential(&scene.bed.lab.client, scene.echo, &Ask::Name, 3);
    assert_eq!(report.failures(), [(Failure::Refused, 3)].into());
    scene.apply(&USUAL);
    assert_eq!(scene.ask(30), [10, 10, 10]);
    scene.assert_untouched();
}
