//! Pools that are looked at again, against everything made anew: over random
//! configurations and random changes of health, activation and hops.

use super::*;
use crate::model::Activation;
use proptest::prelude::*;
use proptest::sample::Index;

/// Names that begin alike, one with nothing, and in another order than the file's.
const NAMES: [&str; 6] = ["b", "a", "aa", "", "a-b", "c"];

/// A pool: its backends' names, weights and activations, and what else of it shows.
fn a_pool(name: &'static str) -> impl Strategy<Value = model::Pool> {
    // Two large weights without a common divisor are more than a ring can hold.
    let weights = prop_oneof![5 => Just(0..=7u16), 1 => Just(65_533..=65_535)];
    let names = prop::sample::subsequence(NAMES.to_vec(), 0..=NAMES.len()).prop_shuffle();
    let backends = (names, weights).prop_flat_map(move |(names, weights)| {
        let each = (weights, activation(), 0..8u8);
        let len = names.len();
        (Just(names), prop::collection::vec(each, len))
    });
    let snat = prop::sample::subsequence(vec!["192.0.2.10", "2001:db8::10"], 0..=2);
    (backends, any::<bool>(), snat).prop_map(move |((names, each), refused, snat)| {
        let backends = names.into_iter().zip(each);
        let backends = backends.map(|(name, (weight, activation, last))| model::Backend {
            activation,
            ..backend(name, &format!("10.0.0.{last}:80"), weight)
        });
        let mut pool = pool(name, backends.collect());
        pool.passive.refused = refused;
        pool.snat = snat.into_iter().map(|ip| ip.parse().unwrap()).collect();
        pool
    })
}

fn activation() -> impl Strategy<Value = Activation> {
    prop_oneof![
        3 => Just(Activation::Active),
        1 => Just(Activation::Drain),
        1 => Just(Activation::Stopped),
    ]
}

/// Pools in any order, each with frontends of no, one or both protocols.
fn a_config() -> impl Strategy<Value = Config> {
    let pools: Vec<_> = NAMES.into_iter().map(a_pool).collect();
    let frontends = prop::collection::vec((0..NAMES.len(), any::<bool>()), 0..10);
    (pools.prop_shuffle(), 1..=NAMES.len(), frontends).prop_map(|(mut pools, count, uses)| {
        pools.truncate(count);
        let frontends = (1..).zip(uses).map(|(n, (which, tcp))| {
            let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
            let pool = &pools[which % pools.len()].name;
            frontend(&n.to_string(), &format!("192.0.2.{n}:80"), protocol, pool)
        });
        config(frontends.collect(), pools)
    })
}

#[derive(Clone, Debug)]
enum Change {
    Health(Health),
    Activation(Option<Activation>),
    Hop(Option<u8>),
}

fn a_change() -> impl Strategy<Value = Change> {
    prop_oneof![
        3 => prop_oneof![Just(Health::Up), Just(Health::Down)].prop_map(Change::Health),
        2 => prop::option::of(activation()).prop_map(Change::Activation),
        1 => prop::option::of(0..3u8).prop_map(Change::Hop),
    ]
}

proptest! {
    /// As many changes at a time as come between two rounds.
    #[test]
    fn a_refreshed_pool_is_as_if_made_anew(
        config in a_config(),
        rounds in prop::collection::vec(
            prop::collection::vec((any::<Index>(), a_change()), 0..5),
            1..10,
        ),
    ) {
        let all: Vec<_> = config
            .pools
            .iter()
            .flat_map(|pool| pool.backends.iter().map(move |backend| (pool, backend)))
            .collect();
        let mut seen = up(&config);
        let mut refreshed = Desired::new(&config, &seen);
        for changes in rounds {
            let mut pools = BTreeSet::new();
            for (which, change) in changes {
                if all.is_empty() {
                    break;
                }
                let (pool, backend) = which.get(&all);
                let name = name(&pool.name, &backend.name);
                let ip = backend.address.ip();
                pools.insert(&pool.name);
                match change {
                    Change::Health(health) => _ = seen.health.insert(name, health),
                    Change::Activation(Some(word)) => _ = seen.activation.insert(name, word),
                    Change::Activation(None) => _ = seen.activation.remove(&name),
                    Change::Hop(last) => {
                        match last {
                            Some(last) => _ = seen.hops.insert(ip, hop(last)),
                            None => _ = seen.hops.remove(&ip),
                        }
                        // Others may have the same server.
                        let others = all.iter().filter(|(_, b)| b.address.ip() == ip);
                        pools.extend(others.map(|(pool, _)| &pool.name));
                    }
                }
            }
            for pool in config.pools.iter().filter(|pool| pools.contains(&pool.name)) {
                refreshed.refresh(pool, &seen);
            }
            prop_assert_eq!(&refreshed, &Desired::new(&config, &seen));
        }
        // One that is looked at in vain, and one that nothing uses.
        for pool in &config.pools {
            refreshed.refresh(pool, &seen);
        }
        refreshed.refresh(&Arc::new(pool("unused", vec![])), &seen);
        prop_assert_eq!(&refreshed, &Desired::new(&config, &seen));
    }
}
