//! TLS: names, versions, clients' certificates, reload, and what is wrong with files.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tempfile::TempDir;

use super::server::*;
use crate::model::http::{CertificateFiles, ClientAuth, Tls, TlsVersion, Versions};
use crate::model::{Misfit, Named};
use crate::proxy::downstream::{Refused, TlsStore};

pub struct Authority {
    pub dir: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "authority");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let dir = TempDir::new().unwrap();
        std::fs::write(dir.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { dir, issuer }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn make(&self, names: &[&str], expired: bool) -> (rcgen::Certificate, KeyPair) {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let mut params = CertificateParams::new(names.clone()).unwrap();
        let common = names.first().map_or("client", String::as_str);
        params.distinguished_name.push(DnType::CommonName, common);
        if expired {
            params.not_before = rcgen::date_time_ymd(2001, 1, 1);
            params.not_after = rcgen::date_time_ymd(2002, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// Writes a certificate and its key.
    pub fn issue(&self, file: &str, names: &[&str]) -> CertificateFiles {
        self.issue_as(file, names, false)
    }

    pub fn issue_as(&self, file: &str, names: &[&str], expired: bool) -> CertificateFiles {
        let (certificate, key) = self.make(names, expired);
        let files = CertificateFiles {
            certificate: self.path(&format!("{file}.pem")),
            key: self.path(&format!("{file}.key")),
        };
        std::fs::write(&files.certificate, certificate.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }

    /// How a client trusts this authority; with or without a certificate of its own.
    pub fn client(&self, alpn: &[&[u8]], certificate: bool) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match certificate {
            false => builder.with_no_client_auth(),
            true => {
                let (certificate, key) = self.make(&["client.example"], false);
                let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
                let chain = vec![CertificateDer::from(certificate.der().to_vec())];
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        config.alpn_protocols = alpn.iter().map(|a| a.to_vec()).collect();
        config
    }
}

pub fn tls(certificates: Vec<CertificateFiles>) -> Tls {
    Tls {
        certificates,
        minimum: TlsVersion::V1_2,
        client_auth: ClientAuth::Off,
    }
}

type Secure = StreamOwned<ClientConnection, TcpStream>;

fn handshake(server: &Server, config: &Arc<ClientConfig>, name: &str) -> std::io::Result<Secure> {
    let name = name.to_owned().try_into().unwrap();
    let session = ClientConnection::new(Arc::clone(config), name).unwrap();
    let mut stream = StreamOwned::new(session, server.connect());
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

fn certificate_of(stream: &Secure) -> Vec<u8> {
    stream.conn.peer_certificates().unwrap()[0].to_vec()
}

fn written(files: &CertificateFiles) -> Vec<u8> {
    use rustls_pki_types::pem::PemObject;
    CertificateDer::from_pem_file(&files.certificate)
        .unwrap()
        .to_vec()
}

#[test]
fn certificates_go_by_name() {
    let ca = Authority::new();
    let first = ca.issue("first", &["first.example"]);
    let wild = ca.issue("wild", &["*.wild.example", "wild.example"]);
    let exact = ca.issue("exact", &["exact.wild.example"]);
    let all = vec![first.clone(), wild.clone(), exact.clone()];
    let server = Server::with_tls(tls(all), |_| {});
    let config = Arc::new(ca.client(&[], false));
    for (name, files) in [
        ("first.example", &first),
        ("wild.example", &wild),
        ("a.wild.example", &wild),
        ("exact.wild.example", &exact),
    ] {
        let mut stream = handshake(&server, &config, name).unwrap();
        assert_eq!(certificate_of(&stream), written(files), "{name}");
        let who = get(&mut stream, "/who");
        assert!(
            who.text().contains("TLSv1.3") && who.text().contains(name),
            "{}",
            who.text()
        );
    }
    // No certificate fits: the first one is shown, and the client does not like it.
    for name in ["other.example", "a.b.wild.example"] {
        assert!(handshake(&server, &config, name).is_err());
    }
    let live = server.live();
    until("counted", || live.refused(Refused::TlsHandshake) == 2);
    assert_eq!(live.tls_handshakes.load(Relaxed), 4);
}

#[test]
fn requests_over_tls_are_kept_and_parked_too() {
    let ca = Authority::new();
    let files = ca.issue("a", &["a.example"]);
    let server = Server::with_tls(tls(vec![files]), |_| {});
    let config = Arc::new(ca.client(&[b"http/1.1"], false));
    let mut stream = handshake(&server, &config, "a.example").unwrap();
    assert_eq!(stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
    let live = server.live();
    for _ in 0..3 {
        let body = bytes(50_000);
        let head = "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 50000\r\n\r\n";
        let answer = ask(&mut stream, [head.as_bytes(), &body].concat());
        assert_eq!(answer.body, body);
        until("parked", || live.parked.load(Relaxed) == 1);
    }
    assert_eq!(ask(&mut stream, "GET / HTTP/1.1\r\n\r\n").status, 400);
    assert!(at_end(&mut stream));
}

#[test]
fn old_versions_and_other_protocols_are_refused() {
    let ca = Authority::new();
    let files = ca.issue("a", &["a.example"]);
    let mut strict = tls(vec![files]);
    strict.minimum = TlsVersion::V1_3;
    let server = Server::with_tls(strict.clone(), |_| {});
    let mut old = ca.client(&[], false);
    assert!(handshake(&server, &Arc::new(old.clone()), "a.example").is_ok());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    old = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    assert!(handshake(&server, &Arc::new(old), "a.example").is_err());
    let only = Arc::new(ca.client(&[b"smtp"], false));
    assert!(handshake(&server, &only, "a.example").is_err());
    // Plain HTTP.
    let mut plain = server.connect();
    plain
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    let mut rest = Vec::new();
    let _ = plain.read_to_end(&mut rest);
    assert!(!rest.starts_with(b"HTTP"));
    let live = server.live();
    until("counted", || live.refused(Refused::TlsHandshake) == 3);
    assert_eq!(live.tls_handshakes.load(Relaxed), 1);
    // Nothing at all.
    let server = Server::with_tls(strict, |f| {
        f.timeouts.handshake = Duration::from_millis(300)
    });
    let mut silent = server.connect();
    let _ = silent.read_to_end(&mut rest);
    let live = server.live();
    until("counted", || live.refused(Refused::TlsHandshake) == 1);
    assert_eq!(live.tls_handshakes.load(Relaxed), 0);
}

#[test]
fn clients_show_certificates_where_they_have_to() {
    let ca = Authority::new();
    let other = Authority::new();
    let files = ca.issue("a", &["a.example"]);
    for (auth, with, without, foreign) in [
        (ClientAuth::Off, true, true, true),
        (ClientAuth::Optional(ca.path("ca.pem")), true, true, false),
        (ClientAuth::Required(ca.path("ca.pem")), true, false, false),
    ] {
        let mut setup = tls(vec![files.clone()]);
        setup.client_auth = auth.clone();
        let server = Server::with_tls(setup, |_| {});
        let ask = |config: ClientConfig| {
            let mut stream = handshake(&server, &Arc::new(config), "a.example").ok()?;
            stream
                .write_all(b"GET /who HTTP/1.1\r\nHost: a\r\n\r\n")
                .ok()?;
            // In TLS 1.3 the client learns of it here.
            let answer = try_answer(&mut stream).ok()?;
            Some(answer.text().contains("client_certificate: Some"))
        };
        let shown = auth != ClientAuth::Off;
        assert_eq!(ask(ca.client(&[], true)), with.then_some(shown), "{auth:?}");
        assert_eq!(
            ask(ca.client(&[], false)),
            without.then_some(false),
            "{auth:?}"
        );
        let mut stranger = other.client(&[], true);
        // It trusts us, we do not trust it.
        let mut roots = RootCertStore::empty();
        roots.add(ca.issuer.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .unwrap();
        stranger.dangerous().set_certificate_verifier(verifier);
        assert_eq!(ask(stranger), foreign.then_some(shown), "{auth:?}");
    }
}

#[test]
fn certificates_are_reloaded_under_running_connections() {
    let ca = Authority::new();
    let files = ca.issue("a", &["a.example"]);
    let mut server = Server::with_tls(tls(vec![files.clone()]), |_| {});
    let config = Arc::new(ca.client(&[], false));
    let mut old = handshake(&server, &config, "a.example").unwrap();
    assert_eq!(get(&mut old, "/x").status, 200);
    let before = written(&files);
    for _ in 0..3 {
        ca.issue("a", &["a.example"]);
        server.reload(|_| {});
        // A client that has no ticket.
        let fresh = Arc::new(ca.client(&[], false));
        let mut new = handshake(&server, &fresh, "a.example").unwrap();
        assert_eq!(certificate_of(&new), written(&files));
        assert_ne!(certificate_of(&new), before);
        assert_eq!(get(&mut new, "/x").status, 200);
        assert_eq!(get(&mut old, "/x").status, 200);
        // One that has may come back by it.
        let mut again = handshake(&server, &config, "a.example").unwrap();
        assert_eq!(get(&mut again, "/x").status, 200);
    }
    assert!(server.live().tls_resumed.load(Relaxed) > 0);
}

fn load(tls: &Tls) -> Result<TlsStore, Vec<Misfit>> {
    let versions = Versions {
        http1: true,
        http2: true,
    };
    TlsStore::load(tls, versions, None)
}

#[test]
fn what_is_wrong_with_files_is_told() {
    let ca = Authority::new();
    let good = ca.issue("good", &["a.example"]);
    let other = ca.issue("other", &["a.example"]);
    let missing = ca.path("missing.pem");
    let file = |name: &str, text: &str| {
        std::fs::write(ca.path(name), text).unwrap();
        ca.path(name)
    };
    let junk = file("junk.pem", "hello");
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let broken = file("broken.pem", broken);
    let cut = file("cut.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n");
    let strange = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    let strange = file("strange.key", strange);
    let foreign = format!(
        "is not the key of the certificate in {}",
        good.certificate.display()
    );
    let no_certificate = "holds no certificate in PEM form";
    /// Certificate, key, and what is said of the key (or of the certificate).
    type Row<'a> = (&'a Path, &'a Path, &'a [(bool, &'a str)]);
    let rows: [Row<'_>; 9] = [
        (
            &missing,
            &good.key,
            &[(false, "can't be read: No such file")],
        ),
        (&junk, &good.key, &[(false, no_certificate)]),
        (&good.key, &good.key, &[(false, no_certificate)]),
        (
            &broken,
            &good.key,
            &[(false, "does not begin with an X.509 certificate")],
        ),
        (&cut, &good.key, &[(false, "is not PEM")]),
        (
            &good.certificate,
            &good.certificate,
            &[(true, "holds no private key")],
        ),
        (
            &good.certificate,
            &strange,
            &[(true, "holds a key that can't be used")],
        ),
        (&good.certificate, &other.key, &[(true, &foreign)]),
        // Both are told.
        (
            &junk,
            &missing,
            &[(false, no_certificate), (true, "can't be read")],
        ),
    ];
    for (certificate, key, wanted) in rows {
        let files = CertificateFiles {
            certificate: certificate.into(),
            key: key.into(),
        };
        let told = load(&tls(vec![good.clone(), files.clone()])).err().unwrap();
        assert_eq!(told.len(), wanted.len(), "{told:?}");
        for (misfit, (of_key, what)) in told.iter().zip(wanted) {
            let named = match of_key {
                true => Named::Key(files.clone()),
                false => Named::Certificate(files.clone()),
            };
            assert_eq!(misfit.named, named, "{misfit:?}");
            assert!(misfit.what.contains(what), "{misfit:?}");
            assert!(misfit.expected.starts_with("a PEM file with"), "{misfit:?}");
        }
    }
    for bad in [&missing, &junk, &broken] {
        for make in [ClientAuth::Required, ClientAuth::Optional] {
            let mut auth = tls(vec![good.clone()]);
            auth.client_auth = make(bad.clone());
            let told = load(&auth).err().unwrap();
            let [misfit] = &told[..] else {
                panic!("{told:?}");
            };
            assert_eq!(misfit.named, Named::ClientAuthorities(bad.clone()));
        }
    }
    // Usable, but.
    let expired = ca.issue_as("expired", &["a.example"], true);
    let store = load(&tls(vec![good.clone(), expired.clone()])).unwrap();
    let odd: Vec<&str> = store.odd().iter().map(|misfit| &*misfit.what).collect();
    let [late, twice] = odd[..] else {
        panic!("{odd:?}");
    };
    assert!(late.starts_with("expired on"), "{late}");
    assert!(
        twice.starts_with("is for a.example, for which one before it"),
        "{twice}"
    );
    let of_expired = |misfit: &Misfit| misfit.named == Named::Certificate(expired.clone());
    assert!(store.odd().iter().all(of_expired));
    assert!(load(&tls(vec![good])).unwrap().odd().is_empty());
}
