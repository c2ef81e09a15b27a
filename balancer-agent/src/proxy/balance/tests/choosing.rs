//! Whom a request is for: sessions, domains, redirects, force, activation, priorities.
//! Stickiness' own tables are in `sticky/tests`; here is what has no cookie in it.

use proptest::prelude::*;
use smallvec::smallvec;

use super::super::choose::{Aim, Usable};
use super::super::testing::{Spec, at};
use super::*;

fn session(view: &PoolView, targets: &[&str], key: u64, force: bool) -> Wish {
    let target = |name: &&str| match name.strip_prefix('@') {
        Some(domain) => Target::Domain(view.domain(domain.as_bytes()).unwrap()),
        None => Target::Backend(at(view, name) as u32),
    };
    Wish::Session(Session {
        targets: targets.iter().map(target).collect(),
        key: SessionKey::Number(key),
        force,
    })
}

fn choose(view: &PoolView, wish: &Wish, tried: &[&str]) -> Result<Option<String>, NoBackend> {
    let tried: Vec<usize> = tried.iter().map(|name| at(view, name)).collect();
    let usable = Usable::at(view, &tried, 1);
    usable.aim(wish, None).map(|aim| match aim {
        Aim::One(index) => Some(view.backends[index].name.to_string()),
        Aim::Group(..) => None,
    })
}

#[test]
fn whom_a_session_gets() {
    let forced = Err(NoBackend::Forced);
    let none = Err(NoBackend::NoneUsable);
    let one = |name: &str| Ok(Some(name.to_owned()));
    // Pool, targets, force, tried, who.
    #[rustfmt::skip]
    let table = [
        ("a b", &["a"][..], false, &[][..], one("a")),
        ("a:drain b", &["a"], false, &[], one("a")),
        ("a:w=0 b", &["a"], false, &[], one("a")),
        ("a:stopped b", &["a"], false, &[], one("b")),
        ("a:down b", &["a"], false, &[], one("b")),
        ("a:down b:drain c", &["a"], false, &[], one("c")),
        ("a:down b:p=1 c", &["a"], false, &[], one("c")),
        ("a:down b:p=1", &["a"], false, &[], one("b")),
        ("a:down b", &["a", "b"], false, &[], one("b")),
        ("a:down b:drain", &["a", "b"], false, &[], one("b")),
        ("a:down b:drain", &["a"], false, &[], none.clone()),
        ("a:stopped b:stopped", &["a"], false, &[], none.clone()),
        ("a b", &["a"], true, &[], one("a")),
        ("a:drain b", &["a"], true, &[], one("a")),
        ("a:down b", &["a"], true, &[], forced.clone()),
        ("a:stopped b", &["a"], true, &[], forced.clone()),
        ("a:down,redirect=b b", &["a"], true, &[], forced.clone()),
        ("a:down,domain=d b:domain=d", &["a"], true, &[], forced.clone()),
        ("a:down b c", &["a", "b"], true, &[], one("b")),
        ("a:down b", &[], true, &[], forced.clone()),
        ("a:down,redirect=b b:p=9 c", &["a"], false, &[], one("b")),
        ("a:down,redirect=b b:drain c", &["a"], false, &[], one("b")),
        ("a:down,redirect=b b:stopped c", &["a"], false, &[], one("c")),
        ("a:down,redirect=b,domain=d b:down c:domain=d e:p=0", &["a"], false, &[], Ok(None)),
        ("a:down,domain=d b c:domain=d", &["a"], false, &[], one("c")),
        ("a:down,domain=d b c:domain=d,drain", &["a"], false, &[], one("b")),
        ("a:down,domain=d b:domain=d,p=2 c:domain=d,p=1 e", &["a"], false, &[], one("c")),
        ("a:domain=d b", &["@d"], false, &[], one("a")),
        ("a:domain=d,drain b", &["@d"], false, &[], one("b")),
        ("a:domain=d,down b", &["@d"], true, &[], forced.clone()),
        ("a:domain=d,down b", &["@d", "b"], true, &[], one("b")),
        ("a b", &["a"], false, &["a"], one("b")),
        ("a b", &["a"], false, &["a", "b"], one("a")),
        ("a:drain b:down", &["a"], false, &["a"], one("a")),
        ("a b", &["a"], true, &["a"], one("a")),
        ("a:redirect=b b c", &["a"], false, &["a"], one("b")),
    ];
    for (spec, targets, force, tried, want) in table {
        let view = Spec(spec).view(http());
        let have = choose(&view, &session(&view, targets, 7, force), tried);
        match want {
            // Anybody of those left.
            Ok(None) => assert!(matches!(have, Ok(Some(_))), "{spec} {targets:?}"),
            want => assert_eq!(have, want, "{spec} {targets:?} {force} {tried:?}"),
        }
    }
}

#[test]
fn without_a_session() {
    let group = Ok(None);
    let none = Err(NoBackend::NoneUsable);
    for (spec, want) in [
        ("a b", group.clone()),
        ("a:down b:w=0", none.clone()),
        ("a:down b:drain", none.clone()),
        ("", none),
    ] {
        assert_eq!(
            choose(&Spec(spec).view(http()), &Wish::Any, &[]),
            want,
            "{spec}"
        );
    }
}

#[test]
fn counted_and_told_apart() {
    let view = Spec("a:down").view(http());
    assert_eq!(now(&view, &[]).unwrap_err(), NoBackend::NoneUsable);
    let counted = view
        .live
        .none_usable
        .load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(counted, 1);
}

proptest! {
    /// Failover: who was not on the lost backend stays; every view, whatever its order,
    /// chooses alike.
    #[test]
    fn failover_moves_own_sessions_only(
        n in 2usize..9, lost in any::<prop::sample::Index>(), also in any::<prop::sample::Index>(),
        keys in prop::collection::vec(any::<u64>(), 32), weights in prop::collection::vec(1u16..5, 9),
    ) {
        let (lost, also) = (lost.index(n), also.index(n));
        let spec = |down: &[usize], reverse: bool| {
            let mut words: Vec<String> = (0..n).map(|i| {
                let state = if down.contains(&i) { ",down" } else { "" };
                format!("b{i}:w={}{state}", weights[i])
            }).collect();
            if reverse {
                words.reverse();
            }
            words.join(" ")
        };
        let one = Spec(&spec(&[lost], false)).view(http());
        let other = Spec(&spec(&[lost], true)).view(http());
        let fewer = Spec(&spec(&[lost, also], false)).view(http());
        let name = format!("b{lost}");
        for key in keys {
            let first = choose(&one, &session(&one, &[&name], key, false), &[]).unwrap();
            let again = choose(&other, &session(&other, &[&name], key, false), &[]).unwrap();
            prop_assert_eq!(&first, &again);
            let third = choose(&fewer, &session(&fewer, &[&name], key, false), &[]);
            if first.as_deref() != Some(&*format!("b{also}")) {
                prop_assert_eq!(third, Ok(first));
            }
        }
    }

    /// Whoever is chosen is allowed: up, not stopped, drained only when named.
    #[test]
    fn nobody_unusable_is_chosen(
        states in prop::collection::vec(0usize..5, 1..8), targets in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        tried in prop::collection::vec(any::<prop::sample::Index>(), 0..3), force: bool, key: u64,
    ) {
        let spec: Vec<String> = states.iter().enumerate().map(|(i, &state)| {
            format!("b{i}:{}", ["", "down", "drain", "stopped", "w=0"][state])
        }).collect();
        let view = Spec(&spec.join(" ")).view(http());
        let name = |i: &prop::sample::Index| format!("b{}", i.index(states.len()));
        let targets: Vec<String> = targets.iter().map(name).collect();
        let tried: Vec<String> = tried.iter().map(name).collect();
        let targets: Vec<&str> = targets.iter().map(|t| &**t).collect();
        let tried: Vec<&str> = tried.iter().map(|t| &**t).collect();
        let open = states.contains(&0);
        match choose(&view, &session(&view, &targets, key, force), &tried) {
            Ok(None) => prop_assert!(false, "a session has one"),
            Ok(Some(chosen)) => {
                let named = targets.contains(&&*chosen);
                let allowed = match states[at(&view, &chosen)] {
                    0 => true,
                    2 | 4 => named,
                    _ => false,
                };
                prop_assert!(allowed && (named || !force), "{chosen}");
            }
            Err(NoBackend::Forced) => prop_assert!(force),
            Err(error) => {
                prop_assert_eq!(error, NoBackend::NoneUsable);
                prop_assert!(!open);
            }
        }
    }
}

#[test]
fn keys_are_the_base_of_the_id() {
    let text = |id: &[u8]| SessionKey::Text(id.into()).number();
    assert_eq!(text(b"ABC.s1"), text(b"ABC.s2"));
    assert_eq!(text(b"ABC.s1"), text(b"ABC"));
    assert_ne!(text(b"ABC.s1"), text(b"ABD.s1"));
    let _: smallvec::SmallVec<[Target; 4]> = smallvec![Target::Backend(0)];
}
