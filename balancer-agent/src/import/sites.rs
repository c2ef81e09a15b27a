//! Sites of a frontend, written as shortly as the configuration allows.

use super::draft::Table;
use super::source::Place;

/// Adds a site. `mounts` are in the order of their rules; a last one of `"/*"` that only
/// names a pool becomes the site's `pool`, and a site that has nothing else and is for every
/// host becomes the frontend's.
pub fn add(
    frontend: &mut Table,
    hosts: &[(String, Place)],
    place: &Place,
    mut mounts: Vec<Table>,
    rest: impl FnOnce(&mut Table),
) {
    let mut site = Table::one_of("site", place);
    for (host, place) in hosts {
        site.add("hosts", host, place);
    }
    let plain = mounts.last().and_then(|mount| {
        let all = matches!(mount.get("pattern"), Some(super::draft::Value::Texts(items))
            if matches!(&items[..], [item] if item.text == "/*"));
        let mut bare = mount.clone();
        bare.remove("pattern");
        let place = mount.place.clone()?;
        (all && bare.only_key() == Some("pool"))
            .then(|| Some((bare.text("pool")?.to_owned(), place)))?
    });
    if let Some((pool, place)) = plain {
        mounts.pop();
        site.set("pool", pool, &place);
    }
    for mount in mounts {
        site.push(mount);
    }
    rest(&mut site);
    let short = hosts.is_empty() && site.only_key() == Some("pool");
    let others = frontend.all("site").next().is_some();
    match site.get("pool") {
        Some(pool) if short && !others => {
            let pool = pool.clone();
            frontend.set("pool", pool, place);
        }
        _ if site.is_empty() => {}
        _ => frontend.push(site),
    }
}
