//! Whole files, and the whole text that becomes of them. With `UPDATE_IMPORT=1` in the
//! environment the expected texts are written anew: read what has changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use balancer_agent::import::{self, Imported, Options};

use crate::support::{Files, load};

fn sample(name: &str) -> PathBuf {
    Path::new("tests/import").join(name)
}

fn compare(name: &str, imported: &Imported) {
    load(&imported.toml);
    let mut said = String::new();
    for entry in &imported.left_over {
        said += &format!("{entry}\n");
    }
    for entry in &imported.notes {
        said += &format!("note: {entry}\n");
    }
    for (kind, text) in [("toml", &imported.toml), ("txt", &said)] {
        let path = sample("expected").join(format!("{name}.{kind}"));
        if std::env::var_os("UPDATE_IMPORT").is_some() {
            fs::write(&path, text).unwrap();
        }
        let expected = fs::read_to_string(&path).unwrap();
        for (line, (own, expected)) in text.lines().zip(expected.lines()).enumerate() {
            assert_eq!(own, expected, "line {} of {}", line + 1, path.display());
        }
        assert_eq!(
            text.lines().count(),
            expected.lines().count(),
            "{}",
            path.display()
        );
    }
}

#[test]
fn haproxy_article() {
    compare(
        "haproxy-article",
        &import::haproxy(&sample("article/haproxy.cfg"), &Options::default()).unwrap(),
    );
}

#[test]
fn workers_article() {
    let httpd = sample("article/httpd.conf");
    let imported = import::workers(
        &sample("article/workers.properties"),
        None,
        Some(&httpd),
        &Options::default(),
    );
    compare("workers-article", &imported.unwrap());
}

#[test]
fn haproxy_web() {
    compare(
        "haproxy-web",
        &import::haproxy(&sample("haproxy/web.cfg"), &Options::default()).unwrap(),
    );
}

#[test]
fn mod_jk() {
    let httpd = sample("mod_jk/httpd.conf");
    let imported = import::workers(
        &sample("mod_jk/workers.properties"),
        None,
        Some(&httpd),
        &Options::default(),
    );
    compare("mod_jk", &imported.unwrap());
}

#[test]
fn nginx_web() {
    compare(
        "nginx-web",
        &import::nginx(&sample("nginx/nginx.conf"), &Options::default()).unwrap(),
    );
}

#[test]
fn nginx_stream() {
    let options = Options {
        interfaces: vec!["eth1".into(), "eth2".into()],
        address: Some("192.0.2.33".parse().unwrap()),
        ..Options::default()
    };
    compare(
        "nginx-stream",
        &import::nginx(&sample("nginx/stream.conf"), &options).unwrap(),
    );
}

/// A certificate with its key in one file, as HAProxy has it.
fn certificate() -> String {
    let made = rcgen::generate_simple_self_signed(vec!["www.example.org".into()]).unwrap();
    format!("{}{}", made.cert.pem(), made.signing_key.serialize_pem())
}

/// Samples that HAProxy itself would not take would prove nothing.
#[test]
fn haproxy_takes_the_samples() {
    if Command::new("haproxy").arg("-v").output().is_err() {
        eprintln!("haproxy is not installed: its samples were not shown to it");
        return;
    }
    let pem = certificate();
    let files = Files::new(&[("www.pem", &pem), ("ca.pem", &pem)]);
    let folder = files.0.path().display().to_string();
    for name in ["article/haproxy.cfg", "haproxy/web.cfg"] {
        let text = fs::read_to_string(sample(name)).unwrap();
        let text = text
            .replace("/etc/ssl/private", &folder)
            .replace("/etc/ssl/", &format!("{folder}/"))
            // Who may be missing on this machine.
            .replace("    user haproxy\n", "");
        let path = files.path("haproxy.cfg");
        fs::write(&path, text).unwrap();
        let output = Command::new("haproxy")
            .args(["-c", "-f"])
            .arg(&path)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {said}");
    }
}

#[test]
fn nginx_takes_the_samples() {
    if Command::new("nginx").arg("-v").output().is_err() {
        eprintln!("nginx is not installed: its samples were not shown to it");
        return;
    }
    let made = rcgen::generate_simple_self_signed(vec!["www.example.org".into()]).unwrap();
    let (pem, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let files = Files::new(&[
        ("www.pem", &pem),
        ("www.key", &key),
        ("api.pem", &pem),
        ("api.key", &key),
        (
            "mime.types",
            &fs::read_to_string(sample("nginx/mime.types")).unwrap(),
        ),
    ]);
    let folder = files.0.path().display().to_string();
    for name in ["nginx.conf", "conf.d/site.conf"] {
        let text = fs::read_to_string(sample("nginx").join(name)).unwrap();
        let text = text.replace("/etc/ssl/", &format!("{folder}/"));
        // Without a place for its process id it wants one of the system's.
        let text = match name {
            "nginx.conf" => format!("pid {folder}/pid;\n{text}"),
            _ => text,
        };
        let path = files.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let output = Command::new("nginx")
        .args(["-t", "-e", "stderr", "-p", &folder, "-c"])
        .arg(files.path("nginx.conf"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}
