//! Agents that belong together: they find each other, notice who is gone, come together
//! again after a partition, and let nobody in who does not have the secret.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use balancer_tests::agent::Agent;
use balancer_tests::netns::{End, Link, Netns, veth};
use balancer_tests::process::{BOUND, came_true, wait_until};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

const PORT: u16 = 7946;
const INTERVAL: Duration = Duration::from_millis(200);
const SUSPECT: Duration = Duration::from_millis(1_000);
/// For what takes no timeout at all, on a busy machine.
const SLACK: Duration = Duration::from_secs(3);

/// How long a death may go unnoticed among three when only silence tells.
fn detection() -> Duration {
    // Everybody is probed within 2 (n - 1) - 1 intervals, has one to answer, and hears of
    // what others found with the next messages.
    INTERVAL * (2 * 2 - 1 + 1 + 1) + SUSPECT + SLACK
}

/// Hosts on one segment; dropped after their agents.
struct Site {
    nodes: Vec<Node>,
    _segment: Netns,
    dir: TempDir,
}

struct Node {
    agent: Agent,
    ns: Netns,
    name: String,
}

impl Site {
    /// Nodes `n0` and so on, which have not been started. `more` is added to the table.
    fn new(count: usize, more: &str) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("cluster-")
            .tempdir()
            .unwrap();
        secret(&dir, "right", 'a');
        secret(&dir, "wrong", 'b');
        let segment = Netns::new();
        segment.ip("link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0\nlink set br0 up\n");
        let nodes = (0..count).map(|i| {
            let ns = Netns::new();
            let port = format!("node{i}");
            let address = format!("10.7.0.{}/24", i + 1);
            veth(
                &End::new(&ns, "eth0", &[&address]),
                &End::new(&segment, &port, &[]),
                Link::default(),
            );
            segment.ip(&format!("link set {port} master br0"));
            let name = format!("n{i}");
            let agent = Agent::prepare_plain(&ns, &config(&dir, i, "right", more));
            Node { agent, ns, name }
        });
        Self {
            nodes: nodes.collect(),
            _segment: segment,
            dir,
        }
    }

    /// Three that are together.
    fn together() -> Self {
        let mut site = Self::new(3, "");
        site.nodes.iter_mut().for_each(|node| node.agent.run());
        site.wait_together(&[0, 1, 2]);
        site
    }

    /// Waits until these see each other alive and are linked.
    #[track_caller]
    fn wait_together(&self, group: &[usize]) -> Duration {
        let began = Instant::now();
        wait_until("the nodes to be together", BOUND, || {
            group.iter().all(|at| {
                let seen = self.nodes[*at].agent.status();
                group.iter().filter(|of| *of != at).all(|of| {
                    let node = find(&seen, &self.nodes[*of].name);
                    node.is_some_and(|n| n["state"] == "alive" && n["link"]["up"] == true)
                })
            })
        });
        began.elapsed()
    }

    /// Waits until these see the other one so, and says how long it took.
    #[track_caller]
    fn wait_state(&self, at: &[usize], of: usize, state: &str, bound: Duration) -> Duration {
        let began = Instant::now();
        let name = &self.nodes[of].name;
        wait_until(&format!("{name} to be {state} at {at:?}"), bound, || {
            at.iter().all(|at| {
                let seen = self.nodes[*at].agent.status();
                find(&seen, name).is_some_and(|node| node["state"] == state)
            })
        });
        began.elapsed()
    }

    /// The number of the life that a node sees of another, or of itself.
    #[track_caller]
    fn life(&self, of: usize, at: usize) -> (u32, String) {
        let seen = self.nodes[at].agent.status();
        let node = find(&seen, &self.nodes[of].name).expect("a node");
        let life = node["incarnation"].as_str().unwrap();
        (
            life.split('-').next().unwrap().parse().unwrap(),
            life.to_owned(),
        )
    }

    fn names(&self, at: usize) -> Vec<String> {
        let seen = self.nodes[at].agent.status();
        let nodes = seen["cluster"]["nodes"].as_array().unwrap();
        let names = nodes
            .iter()
            .map(|node| node["name"].as_str().unwrap().to_owned());
        names.collect()
    }

    fn counter(&self, at: usize, name: &str) -> u64 {
        let seen = self.nodes[at].agent.status();
        seen["cluster"]["counters"][name].as_u64().unwrap()
    }
}

fn find<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    let nodes = status["cluster"]["nodes"].as_array()?;
    nodes.iter().find(|node| node["name"] == name)
}

fn secret(dir: &TempDir, name: &str, seed: char) {
    let path = dir.path().join(name);
    let text: String = (0..40).map(|i| char::from(seed as u8 + i % 13)).collect();
    fs::write(&path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

fn address(node: usize) -> SocketAddr {
    SocketAddr::from(([10, 7, 0, node as u8 + 1], PORT))
}

/// The first node is everybody's seed, unless `more` has seeds.
fn config(dir: &TempDir, node: usize, secret: &str, more: &str) -> String {
    let seeds = match more.contains("seeds") || more.contains("multicast") {
        true => String::new(),
        false => format!("seeds = [\"{}\"]\n", address(0)),
    };
    format!(
        "[cluster]\nname = \"n{node}\"\nlisten = \"{}\"\nsecret_file = {:?}\n\
         state_dir = {:?}\nprobe_interval = \"{}ms\"\nprobe_timeout = \"80ms\"\n\
         suspect_timeout = \"{}ms\"\n{seeds}{more}\n",
        address(node),
        dir.path().join(secret),
        dir.path().join(format!("state{node}")),
        INTERVAL.as_millis(),
        SUSPECT.as_millis(),
    )
}

#[test]
fn three_nodes_find_each_other_and_notice_a_death() {
    let mut site = Site::together();
    assert_eq!(site.names(2), ["n0", "n1", "n2"]);
    for at in 0..3 {
        assert_eq!(site.life(at, at).0, 1);
    }
    let table = site.nodes[0].agent.order(&["status"]);
    for word in [
        "Cluster",
        "n0 (this one)",
        "10.7.0.2:7946",
        "alive",
        "up for",
    ] {
        assert!(table.contains(word), "no {word} in\n{table}");
    }
    let status = site.nodes[0].agent.status();
    let node = find(&status, "n1").unwrap();
    wait_until("a round trip", BOUND, || {
        let status = site.nodes[0].agent.status();
        let node = find(&status, "n1").unwrap();
        node["round_trip_us"].as_u64().is_some() && node["link"]["round_trip_us"].as_u64().is_some()
    });
    assert_eq!(node["link"]["times_up"], 1);

    let former = site.life(2, 0).1;
    site.nodes[2].agent.kill9();
    let took = site.wait_state(&[0, 1], 2, "down", detection());
    println!("down everywhere {took:?} after the kill");
    // Faster than suspicion allows would be a guess.
    assert!(took >= SUSPECT / 2, "{took:?}");
    assert_eq!(
        find(&site.nodes[0].agent.status(), "n2").unwrap()["link"],
        Value::Null
    );

    site.nodes[2].agent.run();
    let took = site.wait_together(&[0, 1, 2]);
    println!("back {took:?} after being ready");
    for at in 0..3 {
        let (count, life) = site.life(2, at);
        assert_eq!(count, 2);
        assert_ne!(life, former);
    }
    // The others had no reason to begin anew.
    assert_eq!((site.life(0, 2).0, site.life(1, 2).0), (1, 1));
}

#[test]
fn a_pause_is_no_death_for_those_who_slept() {
    let mut site = Site::together();
    site.nodes[1].agent.signal(Signal::SIGSTOP);
    site.wait_state(&[0, 2], 1, "down", detection());
    site.nodes[1].agent.signal(Signal::SIGCONT);
    site.wait_together(&[0, 1, 2]);
    // It was given up, so it is another now; the others go on as they are.
    assert_eq!(site.life(1, 0).0, 2);
    assert_eq!((site.life(0, 1).0, site.life(2, 1).0), (1, 1));
    let log = site.nodes[1].agent.log();
    assert!(!log.contains("the node is down"), "{log}");
    // The new life is kept for the next start.
    let kept = site.dir.path().join("state1/cluster-n1.lives");
    wait_until("the number to be kept", BOUND, || {
        fs::read_to_string(&kept).is_ok_and(|text| text.trim() == "2")
    });
}

#[test]
fn a_partition_heals() {
    let site = Site::together();
    site.nodes[2].ns.nft(
        "table inet part {
           chain in { type filter hook input priority 0; iif lo accept; drop
           }
           chain out { type filter hook output priority 0; oif lo accept; drop
           }
         }",
    );
    site.wait_state(&[0, 1], 2, "down", detection());
    site.wait_state(&[2], 0, "down", detection());
    site.wait_state(&[2], 1, "down", detection());
    site.wait_together(&[0, 1]);
    site.nodes[2].ns.run("nft delete table inet part");
    let took = site.wait_together(&[0, 1, 2]);
    println!("together {took:?} after the partition");
    // All were down for somebody.
    for at in 0..3 {
        wait_until("new lives to be known", BOUND, || {
            site.life(at, (at + 1) % 3).0 == 2
        });
    }
    assert_eq!(site.names(0), ["n0", "n1", "n2"]);
}

#[test]
fn another_secret_and_none_are_let_in_nowhere() {
    let mut site = Site::new(5, "");
    for node in 0..3 {
        site.nodes[node].agent.run();
    }
    // It knows all addresses, and has the wrong secret.
    let all: Vec<String> = (0..3)
        .map(|node| format!("{:?}", address(node).to_string()))
        .collect();
    let seeds = format!("seeds = [{}]", all.join(", "));
    let stranger = config(&site.dir, 3, "wrong", &seeds);
    site.nodes[3].agent.write_config(&stranger);
    site.nodes[3].agent.run();
    site.wait_together(&[0, 1, 2]);
    wait_until("the stranger to be noticed by all", BOUND, || {
        (0..3).all(|at| site.counter(at, "wrong_secret") >= 5)
    });
    assert_eq!(site.names(3), ["n3"]);
    // Its own address is its own: it answers nobody, and hears nothing it could read.
    assert_eq!(site.counter(3, "datagrams_in"), 0);

    // Somebody without a secret sends garbage, and speaks other protocols.
    let before = (0..3).map(|at| site.life(at, 0).1).collect::<Vec<_>>();
    site.nodes[4].ns.enter(|| {
        let udp = UdpSocket::bind("10.7.0.5:0").unwrap();
        for to in (0..3).map(address) {
            for size in [0, 1, 57, 1_200, 1_400, 8_000] {
                for version in [0, 1, 255] {
                    let mut bytes = vec![7; size];
                    bytes.iter_mut().take(1).for_each(|b| *b = version);
                    udp.send_to(&bytes, to).unwrap();
                }
            }
            for bytes in [
                &b"GET / HTTP/1.1\r\n\r\n"[..],
                &[0x16, 3, 1, 2, 0, 1],
                b"\0\0\0\x01x",
            ] {
                let mut tcp = TcpStream::connect(to).unwrap();
                tcp.set_read_timeout(Some(BOUND)).unwrap();
                tcp.write_all(bytes).unwrap();
                tcp.shutdown(std::net::Shutdown::Write).unwrap();
                // At most an alert of TLS, which is in the clear and tells nothing.
                let mut said = Vec::new();
                let _ = tcp.read_to_end(&mut said);
                assert!(said.len() <= 64, "{} bytes", said.len());
            }
            assert!(!handshake(to), "{to} took a client without a certificate");
        }
    });
    for at in 0..3 {
        wait_until("the garbage to be counted", BOUND, || {
            site.counter(at, "garbage") >= 10 && site.counter(at, "handshakes_failed") >= 4
        });
        assert_eq!(site.names(at), ["n0", "n1", "n2"]);
        assert_eq!(site.counter(at, "renewals"), 0);
    }
    let after = (0..3).map(|at| site.life(at, 0).1).collect::<Vec<_>>();
    assert_eq!(before, after);
    for at in 0..3 {
        let status = site.nodes[at].agent.status();
        for node in status["cluster"]["nodes"].as_array().unwrap() {
            assert_eq!(node["state"], "alive", "{node}");
            assert!(
                node["own"] == true || node["link"]["times_up"] == 1,
                "{node}"
            );
        }
        let log = site.nodes[at].agent.log();
        assert!(log.contains("not made with this cluster's secret"), "{log}");
        // Neither secret is anywhere in the log.
        assert!(
            !log.contains("abcdefgh") && !log.contains("bcdefghi"),
            "{log}"
        );
    }
    // And the stranger can still become one of them.
    let right = config(&site.dir, 3, "right", &seeds);
    let refused = {
        site.nodes[3].agent.write_config(&right);
        site.nodes[3].agent.command(&["reload"])
    };
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("secret_file"), "{}", refused.err);
    assert_eq!(site.nodes[3].agent.terminate(), Some(0));
    site.nodes[3].agent.run();
    site.wait_together(&[0, 1, 2, 3]);
}

/// Whether a TLS client that trusts everybody and shows no certificate gets further than
/// the handshake.
fn handshake(to: SocketAddr) -> bool {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Trusting(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"balancer-cluster/1".to_vec()];
    let name = rustls_pki_types::ServerName::try_from("any.example").unwrap();
    let client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let tcp = TcpStream::connect(to).unwrap();
    tcp.set_read_timeout(Some(BOUND)).unwrap();
    let mut stream = rustls::StreamOwned::new(client, tcp);
    // A ping: any member would answer it.
    let asked = stream.write_all(&[1, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1]);
    let mut byte = [0];
    asked.is_ok() && stream.read_exact(&mut byte).is_ok()
}

#[derive(Debug)]
struct Trusting(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &[rustls_pki_types::CertificateDer<'_>],
        _: &rustls_pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[test]
fn a_stop_says_goodbye_and_a_reload_brings_new_seeds() {
    // Nobody knows anybody.
    let mut site = Site::new(2, "seeds = []");
    site.nodes.iter_mut().for_each(|node| node.agent.run());
    assert!(!came_true(INTERVAL * 5, || site.names(0).len() > 1));
    let seeds = format!("seeds = [\"{}\", \"{}\"]", address(0), address(1));
    site.nodes[0]
        .agent
        .reconfigure(&config(&site.dir, 0, "right", &seeds));
    site.wait_together(&[0, 1]);

    // What can't be followed is refused, with its reason, and changes nothing.
    for (from, to, said) in [
        ("name = \"n0\"", "name = \"other\"", "[cluster] name"),
        (":7946\"\nsecret", ":7950\"\nsecret", "[cluster] listen"),
    ] {
        let changed = config(&site.dir, 0, "right", &seeds).replacen(from, to, 1);
        site.nodes[0].agent.write_config(&changed);
        let refused = site.nodes[0].agent.command(&["reload"]);
        assert_eq!(refused.code, Some(1), "{to}");
        assert!(
            refused.err.contains(said) && refused.err.contains("restart the agent"),
            "{}",
            refused.err
        );
    }
    site.nodes[0].agent.write_config("");
    let refused = site.nodes[0].agent.command(&["reload"]);
    assert!(
        refused.err.contains("[cluster] (there or not)"),
        "{}",
        refused.err
    );
    site.wait_together(&[0, 1]);

    assert_eq!(site.nodes[1].agent.terminate(), Some(0));
    let took = site.wait_state(&[0], 1, "left", SLACK);
    println!("left {took:?} after its end");
    site.nodes[1].agent.run();
    site.wait_together(&[0, 1]);
}

#[test]
fn nodes_find_each_other_by_multicast() {
    let more = "multicast = \"239.255.79.46:7947\"\ninterface = \"eth0\"";
    let mut site = Site::new(3, more);
    site.nodes.iter_mut().for_each(|node| node.agent.run());
    site.wait_together(&[0, 1, 2]);
}

#[test]
fn a_taken_port_is_said_and_a_lost_disk_is_survived() {
    let mut site = Site::new(2, "");
    let taken = site.nodes[0]
        .ns
        .enter(|| UdpSocket::bind(address(0)).unwrap());
    site.nodes[0].agent.launch();
    wait_until("the agent to end", BOUND, || !site.nodes[0].agent.running());
    let log = site.nodes[0].agent.log();
    assert!(
        log.contains("cannot listen for peers on 10.7.0.1:7946 (UDP)"),
        "{log}"
    );
    drop(taken);
    for _ in 0..3 {
        site.nodes[0].agent.run();
        site.nodes[0].agent.kill9();
    }
    site.nodes.iter_mut().for_each(|node| node.agent.run());
    site.wait_together(&[0, 1]);
    let former = site.life(0, 1).0;
    assert!(former >= 4, "{former}");
    site.nodes[0].agent.kill9();
    fs::remove_dir_all(site.dir.path().join("state0")).unwrap();
    site.nodes[0].agent.run();
    wait_until("a life beyond the former", BOUND, || {
        site.life(0, 0).0 > former && site.life(0, 1) == site.life(0, 0)
    });
    site.wait_together(&[0, 1]);
}
