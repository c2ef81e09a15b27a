//! The standard lab: a client, a balancer and some servers, each in a namespace of
//! its own.
//!
//! ```text
//! client 10.1.0.2 ---- 10.1.0.1 balancer 10.2.i.1 ---- 10.2.i.2 server i
//!        fd01::2       fd01::1           fd02:0:0:i::1  fd02:0:0:i::2
//! ```
//! With a shared segment the servers keep their addresses on one bridge, and the
//! balancer is 10.2.255.1 and fd02:0:0:ffff::1 there. With a router, it stands between
//! client (still 10.1.0.2) and balancer (then 10.4.0.1, fd04::1). Frontend addresses
//! (10.9.0.n, fd09::n) and snat addresses (10.3.0.n, fd03::n) are routed to the balancer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::netns::{End, Link, Netns, veth};

/// What the lab looks like.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many servers, at most 250.
    pub servers: usize,
    /// Of every link, in bytes.
    pub mtu: u32,
    /// Queues of every veth end.
    pub queues: u32,
    /// Puts all servers on one bridged segment instead of a link each.
    pub shared_segment: bool,
    /// Leaves the servers without a route back to the client: only their own subnet
    /// and the snat addresses lead to the balancer.
    pub snat: bool,
    /// Puts a router between client and balancer whose link to the client carries
    /// packets of at most this many bytes (only that way), though the client offers
    /// the whole MTU.
    pub router_mtu: Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        let link = Link::default();
        Self {
            servers: 3,
            mtu: link.mtu,
            queues: link.queues,
            shared_segment: false,
            snat: false,
            router_mtu: None,
        }
    }
}

/// The namespaces, connected and routed.
pub struct Lab {
    /// Where connections come from.
    pub client: Netns,
    /// Where the agent and its XDP program run.
    pub balancer: Netns,
    /// The servers, by number from 0.
    pub servers: Vec<Place>,
    /// Between client and balancer, if asked for.
    pub router: Option<Netns>,
    /// The servers' bridge, if asked for.
    pub segment: Option<Netns>,
    interfaces: Vec<String>,
}

/// One server's namespace and addresses.
pub struct Place {
    /// Where the server runs.
    pub ns: Netns,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
    /// Its device there, which is `eth0`, as seen from the balancer: the balancer's
    /// device that leads to it.
    pub via: String,
}

impl Place {
    /// Its IPv4 address with a port.
    pub fn at4(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.v4), port)
    }

    /// Its IPv6 address with a port.
    pub fn at6(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V6(self.v6), port)
    }
}

impl Lab {
    /// The lab with as many servers and everything else as usual.
    pub fn new(servers: usize) -> Self {
        Self::with(&Options {
            servers,
            ..Options::default()
        })
    }

    /// The lab as the options say.
    pub fn with(options: &Options) -> Self {
        assert!(options.servers <= 250, "at most 250 servers fit the plan");
        let client = Netns::new();
        let balancer = Netns::new();
        route(&balancer);
        // Sequential connections by the ten thousand must not run out of ports.
        client.sysctl("net.ipv4.tcp_tw_reuse", "1");
        client.sysctl("net.ipv4.ip_local_port_range", "10000 65535");

        let link = Link {
            queues: options.queues,
            mtu: options.mtu,
        };
        let mut interfaces = vec!["client0".to_owned()];
        let router = connect_client(&client, &balancer, link, options.router_mtu);
        let segment = options
            .shared_segment
            .then(|| make_segment(&balancer, link, &mut interfaces));
        let servers = (0..options.servers)
            .map(|i| match &segment {
                Some(segment) => join_segment(segment, i, link),
                None => connect_server(&balancer, i, link, &mut interfaces),
            })
            .collect::<Vec<_>>();
        for (i, server) in servers.iter().enumerate() {
            let (v4, v6) = if options.shared_segment {
                ("10.2.255.1".to_owned(), "fd02:0:0:ffff::1".to_owned())
            } else {
                (format!("10.2.{i}.1"), format!("fd02:0:0:{i:x}::1"))
            };
            let destinations = if options.snat {
                ("10.3.0.0/16", "fd03::/64")
            } else {
                ("default", "default")
            };
            server.ns.ip(&format!(
                "route add {} via {v4}\nroute add {} via {v6}\n",
                destinations.0, destinations.1
            ));
        }
        Self {
            client,
            balancer,
            servers,
            router,
            segment,
            interfaces,
        }
    }

    /// The balancer's devices, for `[xdp] interfaces`.
    pub fn interfaces(&self) -> &[String] {
        &self.interfaces
    }

    /// The client's IPv4 address.
    pub fn client4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 1, 0, 2)
    }

    /// The client's IPv6 address.
    pub fn client6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 2)
    }

    /// The n-th IPv4 address that leads to the balancer: for a frontend.
    pub fn vip4(&self, n: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 9, 0, n)
    }

    /// The n-th IPv6 address that leads to the balancer: for a frontend.
    pub fn vip6(&self, n: u16) -> Ipv6Addr {
        Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, n)
    }

    /// The n-th IPv4 address that servers find at the balancer: for snat.
    pub fn snat4(&self, n: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 3, 0, n)
    }

    /// The n-th IPv6 address that servers find at the balancer: for snat.
    pub fn snat6(&self, n: u16) -> Ipv6Addr {
        Ipv6Addr::new(0xfd03, 0, 0, 0, 0, 0, 0, n)
    }
}

const VIPS: [&str; 2] = ["10.9.0.0/16", "fd09::/64"];

fn connect_client(
    client: &Netns,
    balancer: &Netns,
    link: Link,
    router_mtu: Option<u32>,
) -> Option<Netns> {
    let [vip4, vip6] = VIPS;
    let leaf = End::new(client, "eth0", &["10.1.0.2/24", "fd01::2/64"]).mac("02:ba:01:00:00:02");
    let near = ["10.1.0.1/24", "fd01::1/64"];
    let balancers = |addresses: &[&str]| {
        End::new(balancer, "client0", addresses)
            .mac("02:ba:01:00:00:01")
            .without_gro()
    };
    let router = match router_mtu {
        None => {
            veth(&leaf, &balancers(&near), link);
            None
        }
        Some(mtu) => {
            let router = Netns::new();
            route(&router);
            veth(&leaf, &End::new(&router, "client0", &near), link);
            veth(
                &End::new(&router, "core0", &["10.4.0.2/24", "fd04::2/64"]),
                &balancers(&["10.4.0.1/24", "fd04::1/64"]),
                link,
            );
            router.ip(&format!(
                "link set client0 mtu {mtu}\n\
                 route add {vip4} via 10.4.0.1\nroute add {vip6} via fd04::1\n\
                 route add 10.2.0.0/16 via 10.4.0.1\nroute add fd02::/32 via fd04::1\n"
            ));
            balancer.ip("route add 10.1.0.0/24 via 10.4.0.2\nroute add fd01::/64 via fd04::2\n");
            Some(router)
        }
    };
    client.ip("route add default via 10.1.0.1\nroute add default via fd01::1\n");
    router
}

fn connect_server(balancer: &Netns, i: usize, link: Link, interfaces: &mut Vec<String>) -> Place {
    let place = place(i, &format!("server{i}"));
    let end = End::new(
        balancer,
        &place.via,
        &[&format!("10.2.{i}.1/24"), &format!("fd02:0:0:{i:x}::1/64")],
    )
    .mac(&format!("02:ba:02:00:{i:02x}:01"))
    .without_gro();
    veth(&server_end(&place, i, 24, 64), &end, link);
    interfaces.push(place.via.clone());
    place
}

fn make_segment(balancer: &Netns, link: Link, interfaces: &mut Vec<String>) -> Netns {
    let segment = Netns::new();
    segment.ip(&format!(
        "link add br0 mtu {} type bridge stp_state 0 forward_delay 0\nlink set br0 up\n",
        link.mtu
    ));
    let end = End::new(
        balancer,
        "servers0",
        &["10.2.255.1/16", "fd02:0:0:ffff::1/48"],
    )
    .mac("02:ba:02:00:ff:01")
    .without_gro();
    veth(&End::new(&segment, "balancer", &[]), &end, link);
    segment.ip("link set balancer master br0");
    interfaces.push("servers0".to_owned());
    segment
}

fn join_segment(segment: &Netns, i: usize, link: Link) -> Place {
    let place = place(i, "servers0");
    let port = format!("server{i}");
    veth(
        &server_end(&place, i, 16, 48),
        &End::new(segment, &port, &[]),
        link,
    );
    segment.ip(&format!("link set {port} master br0"));
    place
}

fn place(i: usize, via: &str) -> Place {
    Place {
        ns: Netns::new(),
        v4: Ipv4Addr::new(10, 2, i as u8, 2),
        v6: Ipv6Addr::new(0xfd02, 0, 0, i as u16, 0, 0, 0, 2),
        via: via.to_owned(),
    }
}

fn server_end(place: &Place, i: usize, prefix4: u8, prefix6: u8) -> End {
    End::new(
        &place.ns,
        "eth0",
        &[
            &format!("{}/{prefix4}", place.v4),
            &format!("{}/{prefix6}", place.v6),
        ],
    )
    .mac(&format!("02:ba:02:00:{i:02x}:02"))
}

fn route(ns: &Netns) {
    ns.sysctl("net.ipv4.ip_forward", "1");
    ns.sysctl("net.ipv6.conf.all.forwarding", "1");
    ns.sysctl("net.ipv6.conf.default.forwarding", "1");
}
