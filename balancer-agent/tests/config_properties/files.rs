//! Files that configurations name.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// What is in `page.html`.
pub const PAGE: &str = "<p>\u{c7}a ira bient\u{f4}t.\n";
/// What is in `cookie.key`.
pub const COOKIE_KEY: [u8; 40] = [0xa5; 40];
/// What is in `cluster.secret`.
pub const CLUSTER_SECRET: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyz\n";
/// Files with certificates and keys: `0.pem`, `0.key` and so on.
pub const PAIRS: usize = 3;

/// A directory with the files that configurations of these tests name.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("config-properties");
        for site in ["site", "mago3d-user", "mago3d-admin"] {
            fs::create_dir_all(folder.join("www").join(site)).unwrap();
        }
        let file = |name: &str, bytes: &[u8], mode: u32| {
            let path = folder.join(name);
            // Another run may be reading it.
            if fs::read(&path).is_ok_and(|present| present == bytes) {
                return;
            }
            fs::write(&path, bytes).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        };
        file("page.html", PAGE.as_bytes(), 0o644);
        file("cookie.key", &COOKIE_KEY, 0o600);
        file("cluster.secret", CLUSTER_SECRET, 0o600);
        file("authorities.pem", b"certificates", 0o644);
        for i in 0..PAIRS {
            file(&format!("{i}.pem"), b"a certificate", 0o644);
            file(&format!("{i}.key"), b"a key", 0o640);
        }
        folder
    })
}

/// The path of one of them.
pub fn path(name: &str) -> PathBuf {
    folder().join(name)
}

/// An example's text with paths in this directory.
pub fn fill(text: &str) -> String {
    let folder = folder().to_str().unwrap();
    text.replace("/etc/balancer/", &format!("{folder}/"))
        .replace("/var/www/", &format!("{folder}/www/"))
}
