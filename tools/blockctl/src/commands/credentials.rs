//! `blockctl credentials …`

use super::{Context, or_dash};
use crate::{
    cli::credentials::{CreateArgs, CredentialsCommand, Provider},
    failure::{EXIT_DONE, Failure},
    secrets::Sources,
    table::Table,
};
use blockd_api::credentials::{CreateCredential, Credential, ProviderKind, ProviderRequest};
use std::path::{Path, PathBuf};

/// The region where none is given.
const DEFAULT_REGION: &str = "us-east-1";

pub async fn run(context: &Context<'_>, command: CredentialsCommand) -> Result<u8, Failure> {
    let Context { client, output } = context;
    match command {
        CredentialsCommand::Create(args) => {
            let credential = client.create_credential(&request(*args)?).await?;
            match output.is_json() {
                true => output.document(&credential),
                false => output.line(format!("Credentials created successfully, UUID:{}", credential.uuid)),
            }?;
        }
        CredentialsCommand::List => {
            let list = client.list_credentials().await?.credentials;
            match output.is_json() {
                true => output.document(&list),
                false => show(context, &list),
            }?;
        }
        CredentialsCommand::Validate(args) => {
            let credential = client.validate_credential(&args.credential).await?;
            match output.is_json() {
                true => output.document(&credential),
                false => output.line(format!("Credentials validated successfully, UUID:{}", credential.uuid)),
            }?;
        }
        CredentialsCommand::Delete(args) => {
            let deleted = client.delete_credential(&args.credential).await?;
            match output.is_json() {
                true => output.document(&deleted),
                false => output.line(format!("Credentials deleted successfully, UUID:{}", deleted.id)),
            }?;
        }
    }
    Ok(EXIT_DONE)
}

fn show(context: &Context<'_>, list: &[Credential]) -> Result<(), Failure> {
    let of_kind = |kind| list.iter().filter(move |credential| credential.provider == kind);
    let mut s3 = Table::new(&[
        "UUID",
        "NAME",
        "REGION",
        "ENDPOINT",
        "ACCESS KEY",
        "SSL ENABLED",
        "ENCRYPTION",
        "BUCKET",
        "WRITE THROUGHPUT (KBPS)",
    ]);
    for credential in of_kind(ProviderKind::S3) {
        s3.row([
            credential.uuid.to_string(),
            credential.name.to_string(),
            or_dash(credential.region.as_ref()),
            or_dash(credential.endpoint.as_ref()),
            or_dash(credential.access_key.as_ref()),
            or_dash(credential.ssl_enabled),
            credential.encryption.to_string(),
            or_dash(credential.bucket.as_ref()),
            or_dash(credential.write_throughput_kbps),
        ]);
    }
    let mut local = Table::new(&["UUID", "NAME", "PATH", "ENCRYPTION", "WRITE THROUGHPUT (KBPS)"]);
    for credential in of_kind(ProviderKind::Local) {
        local.row([
            credential.uuid.to_string(),
            credential.name.to_string(),
            or_dash(credential.path.as_ref().map(|path| path.display())),
            credential.encryption.to_string(),
            or_dash(credential.write_throughput_kbps),
        ]);
    }
    let output = context.output;
    let mut between = "";
    for (title, kind, table) in [("S3", ProviderKind::S3, s3), ("Local", ProviderKind::Local, local)] {
        if of_kind(kind).next().is_some() {
            output.raw(format!("{between}{title} Credentials\n").as_bytes())?;
            output.table(&table)?;
            between = "\n";
        }
    }
    if list.is_empty() {
        output.note("There are no credentials; see `blockctl credentials create --help`.");
    }
    Ok(())
}

/// What the flags ask for, with secrets read from where they are.
fn request(args: CreateArgs) -> Result<CreateCredential, Failure> {
    let is_stdin = |path: &Option<PathBuf>| path.as_deref() == Some(Path::new("-"));
    if is_stdin(&args.s3_secret_key_file) && is_stdin(&args.encryption_passphrase_file) {
        return Err(Failure::usage(
            "the secret key and the passphrase cannot both be read from stdin: give a file for one of them",
        ));
    }
    refuse_flags_of_the_other(&args)?;
    let encryption_passphrase = Sources {
        what: "encryption passphrase",
        flag: args.encryption_passphrase.as_ref(),
        file: args.encryption_passphrase_file.as_deref(),
        variable: "BLOCKD_ENCRYPTION_PASSPHRASE",
    }
    .read()?;
    let provider = match args.provider {
        Provider::Local => local(args.path)?,
        Provider::S3 => s3(&args)?,
    };
    Ok(CreateCredential { name: args.name, provider, encryption_passphrase })
}

fn refuse_flags_of_the_other(args: &CreateArgs) -> Result<(), Failure> {
    let (chosen, other, given) = match args.provider {
        Provider::Local => (
            "local",
            "s3",
            [
                ("--s3-endpoint", args.s3_endpoint.is_some()),
                ("--s3-access-key", args.s3_access_key.is_some()),
                ("--s3-secret-key", args.s3_secret_key.is_some()),
                ("--s3-secret-key-file", args.s3_secret_key_file.is_some()),
                ("--s3-region", args.s3_region.is_some()),
                ("--bucket", args.bucket.is_some()),
                ("--s3-disable-ssl", args.s3_disable_ssl),
                ("--disable-path-style", args.disable_path_style),
            ]
            .to_vec(),
        ),
        Provider::S3 => ("s3", "local", vec![("--path", args.path.is_some())]),
    };
    match given.into_iter().find(|(_, given)| *given) {
        Some((flag, _)) => Err(Failure::usage(format!(
            "{flag} belongs to --provider {other}, and --provider {chosen} was given"
        ))),
        None => Ok(()),
    }
}

fn local(path: Option<PathBuf>) -> Result<ProviderRequest, Failure> {
    let path = path.ok_or_else(|| Failure::usage("--provider local needs --path DIR"))?;
    // The daemon runs in another directory.
    let absolute = std::path::absolute(&path)
        .map_err(|error| Failure::usage(format!("--path {}: {error}", path.display())))?;
    if absolute.to_str().is_none() {
        return Err(Failure::usage(format!("--path {} is not UTF-8", absolute.display())));
    }
    Ok(ProviderRequest::Local { path: absolute })
}

fn s3(args: &CreateArgs) -> Result<ProviderRequest, Failure> {
    let needs = |what: &str| Failure::usage(format!("--provider s3 needs {what}"));
    let endpoint = args.s3_endpoint.as_deref().ok_or_else(|| needs("--s3-endpoint HOST:PORT"))?;
    let (endpoint, disable_ssl) = plain_endpoint(endpoint, args.s3_disable_ssl)?;
    let bucket =
        args.bucket.clone().filter(|bucket| !bucket.is_empty()).ok_or_else(|| needs("--bucket BUCKET"))?;
    let access_key = match &args.s3_access_key {
        Some(key) => Some(key.clone()),
        None => std::env::var("AWS_ACCESS_KEY_ID").ok(),
    };
    let access_key = access_key
        .filter(|key| !key.is_empty())
        .ok_or_else(|| needs("--s3-access-key KEY, or AWS_ACCESS_KEY_ID in the environment"))?;
    let secret_key = Sources {
        what: "S3 secret key",
        flag: args.s3_secret_key.as_ref(),
        file: args.s3_secret_key_file.as_deref(),
        variable: "AWS_SECRET_ACCESS_KEY",
    }
    .read()?
    .ok_or_else(|| {
        needs("--s3-secret-key-file FILE, --s3-secret-key KEY, or AWS_SECRET_ACCESS_KEY in the environment")
    })?;
    Ok(ProviderRequest::S3 {
        endpoint,
        region: args.s3_region.clone().unwrap_or_else(|| DEFAULT_REGION.to_owned()),
        bucket,
        access_key,
        secret_key,
        disable_ssl,
        disable_path_style: args.disable_path_style,
    })
}

/// The endpoint as `host:port`, and whether to talk plain HTTP: a scheme says so as well as the flag does.
fn plain_endpoint(given: &str, disable_ssl: bool) -> Result<(String, bool), Failure> {
    let wrong =
        |why: &str| Failure::usage(format!("--s3-endpoint {given:?} {why}: expected HOST or HOST:PORT"));
    let (host, disable_ssl) = match given.split_once("://") {
        Some(("http", host)) => (host, true),
        Some(("https", _)) if disable_ssl => return Err(wrong("contradicts --s3-disable-ssl")),
        Some(("https", host)) => (host, false),
        Some(_) => return Err(wrong("has an unknown scheme")),
        None => (given, disable_ssl),
    };
    let host = host.strip_suffix('/').unwrap_or(host);
    if host.is_empty() {
        return Err(wrong("has no host"));
    }
    if host.contains(',') {
        return Err(wrong("names several servers"));
    }
    if host
        .contains(|c: char| matches!(c, '/' | '?' | '#' | '@' | '\\') || c.is_whitespace() || c.is_control())
    {
        return Err(wrong("has more than a host and a port"));
    }
    Ok((host.to_owned(), disable_ssl))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn ask(line: &str) -> Result<CreateCredential, Failure> {
        let words = ["blockctl", "cred", "create", "n"].into_iter().chain(line.split_whitespace());
        match crate::cli::Cli::try_parse_from(words).unwrap().command {
            crate::cli::Command::Credentials(CredentialsCommand::Create(args)) => request(*args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn endpoints_are_a_host_and_a_port() {
        for (given, flag, endpoint, disable_ssl) in [
            ("s3.amazonaws.com", false, "s3.amazonaws.com", false),
            ("127.0.0.1:8333", true, "127.0.0.1:8333", true),
            ("http://127.0.0.1:8333/", false, "127.0.0.1:8333", true),
            ("https://s3.example.org", false, "s3.example.org", false),
            ("[::1]:9000", false, "[::1]:9000", false),
        ] {
            assert_eq!(plain_endpoint(given, flag).unwrap(), (endpoint.to_owned(), disable_ssl), "{given}");
        }
        for given in ["", "http://", "ftp://x", "a,b", "host/bucket", "u@h", "a b"] {
            assert!(plain_endpoint(given, false).is_err(), "{given}");
        }
        assert!(plain_endpoint("https://x", true).is_err());
    }

    #[test]
    fn flags_belong_to_their_provider() {
        for (line, part) in [
            ("--provider local", "needs --path"),
            ("--provider local --path /x --bucket b", "--bucket belongs to --provider s3"),
            ("--provider local --path /x --s3-disable-ssl", "--s3-disable-ssl belongs"),
            ("--provider s3 --path /x", "--path belongs to --provider local"),
            ("--provider s3 --bucket b", "needs --s3-endpoint"),
            ("--provider s3 --s3-endpoint e", "needs --bucket"),
            (
                "--provider s3 --s3-secret-key-file - --encryption-passphrase-file -",
                "cannot both be read from stdin",
            ),
        ] {
            let failure = ask(line).unwrap_err();
            assert_eq!(failure.exit_status(), 2, "{line}");
            assert!(failure.to_string().contains(part), "{line}: {failure}");
        }
    }

    #[test]
    fn a_relative_directory_is_made_absolute() {
        let request = ask("--provider local --path some/dir").unwrap();
        let ProviderRequest::Local { path } = request.provider else { panic!() };
        assert_eq!(path, std::env::current_dir().unwrap().join("some/dir"));
    }

    #[test]
    fn secrets_come_from_files() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        std::fs::write(&file, "s3cret\n").unwrap();
        let file = file.display();
        let line = format!(
            "--provider s3 --s3-endpoint e --bucket b --s3-access-key a --s3-secret-key-file {file} --encryption-passphrase-file {file}"
        );
        let request = ask(&line).unwrap();
        assert_eq!(request.encryption_passphrase.unwrap().expose(), "s3cret");
        let ProviderRequest::S3 { secret_key, region, .. } = request.provider else { panic!() };
        assert_eq!((secret_key.expose(), region.as_str()), ("s3cret", "us-east-1"));
    }
}
