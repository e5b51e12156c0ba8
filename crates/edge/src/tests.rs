//! Who is let in over TLS, and that certificates follow their files.

use std::path::PathBuf;
use std::time::Duration;

use net::{TcpListener, TcpStream};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use types::Role;

use crate::tls::{CA_FILE, CERTIFICATE_FILE, KEY_FILE};
use crate::{AuthError, Authority, ClusterSecret, ClusterTls, Credentials, Port, ServerTls, SetupError, Trust};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A directory per role below one.
struct Files(TempDir);

impl Files {
    fn new(ca: &Authority, valid: Duration) -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        for role in [Role::Scheduler, Role::Prefill, Role::Decode] {
            ca.save(&ca.issue_role(role, valid).unwrap(), &files.dir(role)).unwrap();
        }
        files
    }

    fn dir(&self, role: Role) -> PathBuf {
        self.0.path().join(role.to_string())
    }

    fn credentials(&self, role: Role) -> Credentials {
        Credentials { secret: None, tls: Some(ClusterTls::load(&self.dir(role), role).unwrap()) }
    }
}

/// One connection between two sides: what the listener makes of it, and whether the other side hears `hello` from it.
async fn meet(
    listens: &Credentials,
    port: Port,
    connects: &Credentials,
    to: Role,
) -> (Result<Option<Role>, AuthError>, Result<bool, AuthError>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let listening = async {
        let mut admitted = listens.accept(listener.accept().await.unwrap().0, port, "near").await?;
        admitted.stream.write_all(b"hello").await.unwrap();
        admitted.stream.shutdown().await.unwrap();
        Ok(admitted.role)
    };
    let connecting = async {
        let stream = TcpStream::connect(address).await.unwrap();
        let mut stream = connects.connect(stream, to, port, "far").await?;
        let mut heard = Vec::new();
        let _ = stream.read_to_end(&mut heard).await;
        Ok(heard == b"hello")
    };
    tokio::join!(listening, connecting)
}

#[tokio::test]
async fn roles_of_one_ca_meet_where_they_have_business() {
    let ca = Authority::new().unwrap();
    let files = Files::new(&ca, DAY);
    let (scheduler, prefill, decode) =
        (files.credentials(Role::Scheduler), files.credentials(Role::Prefill), files.credentials(Role::Decode));
    let check = async |listens: &Credentials, port, connects: &Credentials, to, expected: Result<Role, AuthError>| {
        let (listened, connected) = meet(listens, port, connects, to).await;
        assert_eq!(connected == Ok(true), expected.is_ok(), "{connected:?}");
        match expected {
            Ok(role) => assert_eq!(listened, Ok(Some(role))),
            Err(AuthError::Tls(_)) => assert!(matches!(listened, Err(AuthError::Tls(_))), "{listened:?}"),
            Err(error) => assert_eq!(listened, Err(error)),
        }
    };
    let tls = || Err(AuthError::Tls(String::new()));
    check(&prefill, Port::Worker, &scheduler, Role::Prefill, Ok(Role::Scheduler)).await;
    check(&decode, Port::Worker, &scheduler, Role::Decode, Ok(Role::Scheduler)).await;
    check(&decode, Port::Kv, &prefill, Role::Decode, Ok(Role::Prefill)).await;
    check(&decode, Port::Worker, &prefill, Role::Decode, Ok(Role::Prefill)).await;
    let scheduler_on_kv = Err(AuthError::WrongRole { found: Role::Scheduler });
    check(&decode, Port::Kv, &scheduler, Role::Decode, scheduler_on_kv).await;
    // A decode instance is no client of anyone, a scheduler no server; and who connects reaches the role it wants.
    check(&decode, Port::Kv, &decode, Role::Decode, tls()).await;
    check(&scheduler, Port::Worker, &prefill, Role::Scheduler, tls()).await;
    check(&prefill, Port::Worker, &scheduler, Role::Decode, tls()).await;
}

#[tokio::test]
async fn strangers_are_refused_with_a_reason() {
    let ca = Authority::new().unwrap();
    let (files, expired) = (Files::new(&ca, DAY), Files::new(&ca, Duration::ZERO));
    let foreign = Files::new(&Authority::new().unwrap(), DAY);
    let decode = files.credentials(Role::Decode);
    let plain = Credentials::default();
    let secret = ClusterSecret::new("0123456789abcdef", "test").unwrap();
    let only_secret = Credentials { secret: Some(secret.clone()), tls: None };
    let both = Credentials { secret: Some(secret.clone()), ..files.credentials(Role::Decode) };
    let prefill = files.credentials(Role::Prefill);
    let other_secret = ClusterSecret::new("fedcba9876543210", "test").ok();
    let other_secret = Credentials { secret: other_secret, ..files.credentials(Role::Prefill) };
    let prefill_both = Credentials { secret: Some(secret), ..files.credentials(Role::Prefill) };
    let refused = async |listens: &Credentials, connects: &Credentials, part: &str| {
        let (listened, connected) = meet(listens, Port::Kv, connects, Role::Decode).await;
        let reason = listened.unwrap_err().to_string();
        assert!(reason.contains(part), "{reason}");
        assert_ne!(connected, Ok(true));
    };
    refused(&decode, &foreign.credentials(Role::Prefill), "TLS").await;
    refused(&decode, &expired.credentials(Role::Prefill), "xpired").await;
    refused(&expired.credentials(Role::Decode), &prefill, "xpired").await;
    refused(&decode, &only_secret, "speaks no TLS").await;
    refused(&both, &other_secret, "not the same cluster secret").await;
    assert_eq!(meet(&both, Port::Kv, &prefill_both, Role::Decode).await, (Ok(Some(Role::Prefill)), Ok(true)));
    // A listener without certificates gives a TLS peer nothing that it would believe.
    assert_ne!(meet(&plain, Port::Kv, &prefill, Role::Decode).await.1, Ok(true));
}

#[tokio::test]
async fn a_replaced_certificate_is_taken_over_and_a_bad_one_is_not() {
    let (old, new) = (Authority::new().unwrap(), Authority::new().unwrap());
    let (near, far) = (Files::new(&old, DAY), Files::new(&old, DAY));
    let (decode, prefill) = (near.credentials(Role::Decode), far.credentials(Role::Prefill));
    let fits = async || meet(&decode, Port::Kv, &prefill, Role::Decode).await.1 == Ok(true);
    assert!(fits().await);
    let look = |credentials: &Credentials| credentials.tls.as_ref().unwrap().look();
    std::fs::write(near.dir(Role::Decode).join(KEY_FILE), "rubbish").unwrap();
    assert!(look(&decode).contains("Bad") && fits().await, "the old one stays");
    new.save(&new.issue_role(Role::Decode, DAY).unwrap(), &near.dir(Role::Decode)).unwrap();
    assert!(look(&decode).contains("Changed") && !fits().await);
    new.save(&new.issue_role(Role::Prefill, DAY).unwrap(), &far.dir(Role::Prefill)).unwrap();
    assert!(look(&prefill).contains("Changed") && fits().await);
}

#[test]
fn files_that_do_not_fit_are_named() {
    let ca = Authority::new().unwrap();
    let files = Files::new(&ca, DAY);
    let refused = |role, part: &str| {
        let error = ClusterTls::load(&files.dir(Role::Prefill), role).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
        error
    };
    refused(Role::Decode, "does not name decode.pdserve.internal");
    let other = ca.issue_role(Role::Prefill, DAY).unwrap();
    std::fs::write(files.dir(Role::Prefill).join(KEY_FILE), other.key_pem).unwrap();
    refused(Role::Prefill, CERTIFICATE_FILE);
    std::fs::write(files.dir(Role::Prefill).join(CA_FILE), "none").unwrap();
    assert!(matches!(refused(Role::Prefill, "no certificate in PEM"), SetupError::Certificate { .. }));
    std::fs::remove_file(files.dir(Role::Prefill).join(CA_FILE)).unwrap();
    assert!(matches!(refused(Role::Prefill, CA_FILE), SetupError::File { .. }));
}

#[tokio::test]
async fn a_client_believes_its_ca_for_the_names_in_the_certificate_and_nobody_else() {
    let (ca, other) = (Authority::new().unwrap(), Authority::new().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let [own, foreign, server] = ["own", "foreign", "server"].map(|name| directory.path().join(name));
    ca.save(&ca.issue_server(vec!["localhost".into(), "127.0.0.1".into()], DAY).unwrap(), &server).unwrap();
    std::fs::write(&own, ca.certificate_pem()).unwrap();
    std::fs::write(&foreign, other.certificate_pem()).unwrap();
    let tls = ServerTls::load(&server.join(CERTIFICATE_FILE), &server.join(KEY_FILE)).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let call = async |ca: &PathBuf, host: &str| {
        let (trust, tls) = (Trust::load(ca).unwrap(), tls.clone());
        let accepting = async { tls.accept(listener.accept().await.unwrap().0).await.map(drop) };
        let (_, called) = tokio::join!(accepting, trust.connect(address, host));
        called.map(drop)
    };
    assert_eq!(call(&own, "localhost").await, Ok(()));
    assert_eq!(call(&own, "127.0.0.1").await, Ok(()));
    assert!(matches!(call(&own, "example.org").await, Err(AuthError::Tls(_))));
    assert!(matches!(call(&foreign, "localhost").await, Err(AuthError::Tls(_))));
    assert!(matches!(Trust::load(&server.join(KEY_FILE)), Err(SetupError::Certificate { .. })));
}
