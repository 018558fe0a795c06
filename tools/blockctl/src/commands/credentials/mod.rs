//! `blockctl credentials …`

pub mod args;
pub mod create;
pub mod rekey;
pub mod settings;
pub mod update;

use crate::{
    commands::{
        filters::NamePattern,
        limits::changed_limits,
        list_filter::{LabelOption, Listed, Sort},
    },
    failure::{EXIT_DONE, Exit},
    output::Context,
    table::{Facts, Table, Width, or_dash, short_uuid},
};
use args::{CredentialsCommand, ListArgs};
use blockd_api::{
    ByteSize, CredentialName, LimitWindow,
    credentials::{Credential, ProviderKind},
    format_time, operations,
};
use jiff::Timestamp;
use std::cmp::Ordering;

pub async fn run(context: &Context<'_>, command: CredentialsCommand) -> Exit {
    let Context { client, output } = context;
    let say = |what: &str, credential: &Credential| {
        output.tell(credential, || {
            format!("Credentials {what} successfully, UUID:{}", credential.credential_id)
        })
    };
    match command {
        CredentialsCommand::Create(args) => {
            let request = create::request(*args)?;
            let credential = client.call(operations::CREATE_CREDENTIAL, &request).await?;
            output.warn(&credential.warnings);
            if !credential.encrypted && !credential.warnings.is_empty() {
                output.note("hint: --encryption-passphrase-file encrypts the backups of a new credential for an empty location");
            }
            say("created", &credential)
        }
        CredentialsCommand::List(args) => list(context, &args).await,
        CredentialsCommand::Inspect(args) => {
            let credential = client.call_at(operations::GET_CREDENTIAL, &args.credential, &()).await?;
            output.describe(&credential, || facts(&credential))
        }
        CredentialsCommand::Validate(args) => {
            say("validated", &client.call_at(operations::VALIDATE_CREDENTIAL, &args.credential, &()).await?)
        }
        CredentialsCommand::Update(args) => {
            let kept = client.call_at(operations::GET_CREDENTIAL, &args.credential, &()).await?;
            update::refuse_unchangeable(&args.settings)?;
            let request = update::request(&args.settings, kept.store.provider)?;
            say("updated", &client.call_at(operations::UPDATE_CREDENTIAL, &args.credential, &request).await?)
        }
        CredentialsCommand::SetDefault(args) => {
            let before = client.call(operations::LIST_CREDENTIALS, &()).await?.items;
            let now = client.call_at(operations::SET_DEFAULT_CREDENTIAL, &args.credential, &()).await?;
            let exit = say("made the default", &now);
            if let Some(note) = note_on_default(&now.name, &before).filter(|_| !output.is_json()) {
                output.note(note);
            }
            exit
        }
        CredentialsCommand::Rekey(args) => rekey::run(context, args).await,
        CredentialsCommand::Limit(args) => {
            let now = client.call_at(operations::GET_CREDENTIAL, &args.credential, &()).await?;
            let limits = changed_limits(&now, args.limit_upload, args.limit_download, args.limit_time_zone);
            let credential = client.call_at(operations::LIMIT_CREDENTIAL, &args.credential, &limits).await?;
            let shown = |otherwise, windows: &[LimitWindow]| {
                limit(otherwise, windows).unwrap_or_else(|| "no limit".to_owned())
            };
            output.tell(&credential, || {
                format!(
                    "Credentials limited successfully, UUID:{} (upload {}, download {})",
                    credential.credential_id,
                    shown(credential.limit_upload_bytes_per_second, &credential.limit_upload_windows),
                    shown(credential.limit_download_bytes_per_second, &credential.limit_download_windows),
                )
            })
        }
        CredentialsCommand::Delete(args) => {
            let credential = &args.target.credential;
            let consequence =
                format!("Credential {credential} is deleted; its backups stay, and need it to be read.");
            args.yes.confirm(output, &consequence)?;
            let deleted = client.call_at(operations::DELETE_CREDENTIAL, credential, &()).await?;
            output.tell(&deleted, || {
                format!("Credentials deleted successfully, UUID:{}", or_dash(deleted.credential_id))
            })
        }
    }
}

/// Returns a note on the credential that is no longer the default.
pub fn note_on_default(now: &CredentialName, before: &[Credential]) -> Option<String> {
    let former = before.iter().find(|one| one.is_default && one.name != *now)?;
    Some(format!("note: {now} is the default backup location now, in place of {}", former.name))
}

/// Column of a provider's table.
type Column = (&'static str, fn(&Credential) -> String);

const UUID: Column = ("UUID", |one| one.credential_id.to_string());
const NAME: Column = ("NAME", |one| one.name.to_string());
const ENCRYPTION: Column = ("ENCRYPTION", |one| one.encrypted.to_string());
const BUCKET: Column = ("BUCKET", |one| or_dash(place(one)));
const CREATE_IF_ABSENT: Column = ("CREATE IF ABSENT", |one| one.conditional_put.to_string());
const THROUGHPUT: Column = ("WRITE THROUGHPUT (KBPS)", |one| or_dash(kilobytes_per_second(one)));
const DEFAULT: Column = ("DEFAULT", default);

/// Tables, with the columns between the name and the last three.
const KINDS: [(&str, ProviderKind, &[Column]); 5] = [
    (
        "S3",
        ProviderKind::S3,
        &[
            ("REGION", |one| or_dash(one.store.region.as_ref())),
            ("ENDPOINT", |one| or_dash(one.store.endpoint.as_ref())),
            ("ACCESS KEY", |one| or_dash(one.store.s3.access_key.as_ref())),
            ("SSL ENABLED", |one| or_dash(one.store.ssl_enabled)),
            ENCRYPTION,
            BUCKET,
        ],
    ),
    (
        "Google",
        ProviderKind::Google,
        &[("PROJECT ID", |one| or_dash(one.store.project.as_ref())), ENCRYPTION, BUCKET],
    ),
    (
        "Azure",
        ProviderKind::Azure,
        &[("ACCOUNT NAME", |one| or_dash(one.store.account.as_ref())), ENCRYPTION, BUCKET],
    ),
    (
        "Swift",
        ProviderKind::Swift,
        &[
            ("AUTH URL", |one| or_dash(one.store.endpoint.as_ref())),
            ("USER", |one| or_dash(one.store.user.as_ref())),
            ENCRYPTION,
            BUCKET,
        ],
    ),
    ("Local", ProviderKind::Local, &[("PATH", |one| or_dash(place(one))), ENCRYPTION]),
];

impl Listed for Credential {
    const NAME_HELP: &'static str = "Only credentials of this name; * matches any characters";
    const LABEL: LabelOption = LabelOption::Absent;
    const SORTS: &'static [Sort] = &[Sort::Created, Sort::Name];

    fn is_named(&self, pattern: &NamePattern) -> bool {
        pattern.matches(self.name.as_str())
    }

    fn at(&self) -> Option<Timestamp> {
        Some(self.created_at)
    }

    fn compare(&self, other: &Self, sort: Sort) -> Ordering {
        match sort {
            Sort::Name => self.name.cmp(&other.name),
            _ => self.created_at.cmp(&other.created_at),
        }
    }
}

async fn list(context: &Context<'_>, args: &ListArgs) -> Exit {
    let (output, width) = (context.output, args.width.width());
    let mut list = context.client.call(operations::LIST_CREDENTIALS, &()).await?;
    let is_fresh = list.items.is_empty();
    args.filter.apply(context, &mut list.items, None).await?;
    if output.is_json() || list.items.is_empty() || width == Width::Narrow {
        let exit = output.list(&list, "credentials", || table(&list.items));
        if is_fresh && !output.is_json() {
            output.note("hint: blockctl credentials create --help");
        }
        return exit;
    }
    let mut between = "";
    for (title, kind, columns) in KINDS {
        let columns: Vec<Column> =
            [&[UUID, NAME], columns, &[CREATE_IF_ABSENT, THROUGHPUT, DEFAULT]].concat();
        let mut table = Table::new(columns.iter().map(|(title, _)| *title));
        list.items
            .iter()
            .filter(|one| one.store.provider == kind)
            .for_each(|one| table.row(columns.iter().map(|(_, cell)| cell(one))));
        if table.is_empty() {
            continue;
        }
        output.raw(format!("{between}{title} Credentials\n").as_bytes())?;
        output.table(&table)?;
        between = "\n";
    }
    Ok(EXIT_DONE)
}

fn table(credentials: &[Credential]) -> Table {
    Table::of(
        "UUID|NAME|PROVIDER|ENCRYPTION|LOCATION|DEFAULT",
        credentials.iter().map(|one| {
            [
                short_uuid(one.credential_id),
                one.name.to_string(),
                one.store.provider.to_string(),
                one.encrypted.to_string(),
                or_dash(place(one)),
                default(one),
            ]
        }),
    )
    .fit("NAME|LOCATION")
}

/// Marks the default credential.
fn default(one: &Credential) -> String {
    or_dash(one.is_default.then_some("*"))
}

/// Formats bucket or directory with the prefix.
fn place(one: &Credential) -> Option<String> {
    let path = || one.store.path.as_ref().map(|path| path.display().to_string());
    let place = one.store.bucket.clone().or_else(path)?;
    Some(match &one.prefix {
        Some(prefix) => format!("{place}/{prefix}"),
        None => place,
    })
}

/// Describes where the backups of a location lie.
pub fn lies_in(one: &Credential) -> String {
    let noun = match one.store.provider {
        ProviderKind::Local => "",
        ProviderKind::Azure | ProviderKind::Swift => "container ",
        ProviderKind::S3 | ProviderKind::Google => "bucket ",
    };
    let endpoint = one.store.endpoint.as_ref().map(|endpoint| format!(" at {endpoint}"));
    format!("{noun}{}{}", or_dash(place(one)), endpoint.unwrap_or_default())
}

/// Returns the write throughput in kilobytes per second.
fn kilobytes_per_second(one: &Credential) -> Option<u64> {
    one.write_bytes_per_second.map(|bytes| (bytes / 1000).max(1))
}

fn facts(one: &Credential) -> Facts {
    let mut facts = Facts::default();
    facts.add("Credentials", one.credential_id).add("Name", &one.name).add("Provider", one.store.provider);
    for (name, value) in [
        ("Path", one.store.path.as_ref().map(|path| path.display().to_string())),
        ("Endpoint", one.store.endpoint.clone()),
        ("Region", one.store.region.clone()),
        ("Account", one.store.account.clone()),
        ("Project", one.store.project.clone()),
        ("User", one.store.user.clone()),
        ("Bucket", one.store.bucket.clone()),
        ("Prefix", one.prefix.clone()),
        ("Authentication", one.store.auth.clone()),
        ("Access key", one.store.s3.access_key.clone()),
        ("Role", one.store.s3.role.as_ref().map(|role| role.arn.clone())),
        ("External id", one.store.s3.role.as_ref().and_then(|role| role.external_id.clone())),
        ("TLS", one.store.ssl_enabled.map(yes_or_no)),
        ("Path style", one.store.s3.path_style.map(yes_or_no)),
        ("Storage class", one.store.s3.storage_class.clone()),
        ("Proxy", one.proxy.clone()),
        ("CA certificates", one.has_ca_certificates.then(|| "own".to_owned())),
        ("Upload limit", limit(one.limit_upload_bytes_per_second, &one.limit_upload_windows)),
        ("Download limit", limit(one.limit_download_bytes_per_second, &one.limit_download_windows)),
        ("Times of limits", one.limit_time_zone.clone()),
    ] {
        if let Some(value) = value {
            facts.add(name, value);
        }
    }
    for (name, from) in [("Store key", &one.store.store_key_from), ("Passphrase", &one.encryption_key_from)] {
        if let Some(from) = from {
            facts.add(name, from);
        }
    }
    facts
        .add("Default", yes_or_no(one.is_default))
        .add("Compression", one.compression)
        .add("Deduplication", one.deduplicate)
        .add("Encryption", yes_or_no(one.encrypted))
        .add("Create if absent", if one.conditional_put { "yes, probed" } else { "no, blockd does without" })
        .add("Created", format_time(one.created_at))
        .add("Write throughput (KBPS)", or_dash(kilobytes_per_second(one)));
    facts
}

fn yes_or_no(yes: bool) -> String {
    if yes { "yes" } else { "no" }.to_owned()
}

/// Formats a bandwidth limit, by time of day if it has windows; `None` without a limit.
fn limit(otherwise_bytes_per_s: Option<u64>, windows: &[LimitWindow]) -> Option<String> {
    let otherwise = otherwise_bytes_per_s.map(|bytes| format!("{}/s", ByteSize::from_bytes(bytes)));
    if windows.is_empty() {
        return otherwise;
    }
    let mut parts: Vec<String> = windows.iter().map(LimitWindow::to_string).collect();
    parts.push(otherwise.unwrap_or_else(|| "no limit".to_owned()) + " otherwise");
    Some(parts.join(", "))
}
