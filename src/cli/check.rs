//! Examining volumes.

use super::repair::{self, Repair};
use super::{Context, args, size};
use crate::doctor::{Affected, Amount, Damage, Doctor, Progress, Report, VolumeReport};
use crate::error::{Error, ErrorKind, Result};
use crate::format::stores::StoreId;
use crate::pool::backend::{Asked, Backend};
use serde::Serialize;
use std::io::IsTerminal;
use std::time::Duration;
use tokio::time::MissedTickBehavior;

/// Time between two looks at how far it is.
const TICK: Duration = Duration::from_millis(250);
/// The same where each is a line.
const TICK_OF_LOG: Duration = Duration::from_secs(5);
/// Damages and runs that are shown; `--json` has all.
const SHOWN: usize = 20;

pub(super) async fn check(context: &Context, check: args::Check) -> Result<()> {
    let rate = check.rate.as_deref().map(|rate| size::parse("--rate", rate)).transpose()?;
    if rate == Some(0) {
        return Err(
            Error::usage("--rate 0 leaves nothing to read").hint("leave it out for no limit")
        );
    }
    let backend = context.open().await?;
    let mut report = examined(&backend, &check, rate).await?;
    let repairs = match check.repair {
        true => {
            let mut repairs = Vec::new();
            // What damage hid is found once that is repaired.
            while repair::carry_out(&backend, &check, &report, &mut repairs).await? {
                // What it is now, by the store and nothing else.
                report = examined(&backend, &check, rate).await?;
            }
            Some(repairs)
        }
        false => None,
    };
    let document = Document { report: &report, repairs: repairs.as_deref() };
    let told = repairs.iter().flatten().flat_map(Repair::tell);
    context.show(&document, || {
        let lines = told.chain(std::iter::once(tell(&report)));
        lines.collect::<Vec<_>>().join("\n")
    })?;
    verdict(&report)
}

/// What was found, after the repair if there was one.
#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    report: &'a Report,
    #[serde(skip_serializing_if = "Option::is_none")]
    repairs: Option<&'a [Repair]>,
}

async fn examined(backend: &Backend, check: &args::Check, rate: Option<u64>) -> Result<Report> {
    backend.ask_copies(Asked::First);
    let report = each_copy(backend, check, rate).await;
    backend.ask_copies(Asked::Either);
    report
}

async fn each_copy(backend: &Backend, check: &args::Check, rate: Option<u64>) -> Result<Report> {
    let name = check.name.as_deref().map(str::parse).transpose()?;
    let doctor = Doctor::new(&backend.pool, check.data, rate);
    let examination = async {
        match &name {
            Some(name) => doctor.check(name).await,
            None => doctor.check_all().await,
        }
    };
    let mut report = watched(examination, doctor.progress(), check.progress).await?;
    let mut twice = Vec::new();
    for volume in &report.volumes {
        let state = backend.mirror_state(volume.id).await?;
        let second = state.and_then(|state| state.in_sync.get(1).copied());
        twice.extend(second.map(|twin| (volume.name.clone(), twin.store)));
    }
    if !twice.is_empty() {
        backend.ask_copies(Asked::Second);
        second_copies(backend, check, (rate, twice), &mut report).await?;
    }
    Ok(report)
}

/// Examines the second copies of mirrored volumes as well, as if there were no others.
async fn second_copies(
    backend: &Backend,
    check: &args::Check,
    (rate, twice): (Option<u64>, Vec<(String, StoreId)>),
    report: &mut Report,
) -> Result<()> {
    for (name, store) in twice {
        let doctor = Doctor::new(&backend.pool, check.data, rate);
        let name = name.parse()?;
        let examined = doctor.check(&name);
        let second = watched(examined, doctor.progress(), check.progress).await?;
        report.clean &= second.clean;
        report.requests += second.requests;
        report.read_bytes += second.read_bytes;
        for mut volume in second.volumes {
            volume.name = format!("{} in store {store}", volume.name);
            report.volumes.push(volume);
        }
    }
    Ok(())
}

/// Shows how far it is.
async fn watched(
    examination: impl Future<Output = Result<Report>>,
    progress: &Progress,
    asked: bool,
) -> Result<Report> {
    let terminal = std::io::stderr().is_terminal();
    let mut tick = tokio::time::interval(if terminal { TICK } else { TICK_OF_LOG });
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick.tick().await;
    tokio::pin!(examination);
    loop {
        tokio::select! {
            report = &mut examination => {
                if terminal {
                    eprint!("\r\x1b[K");
                }
                return report;
            }
            _ = tick.tick(), if terminal || asked => match terminal {
                true => eprint!("\r{progress}\x1b[K"),
                false => eprintln!("{progress}"),
            },
        }
    }
}

/// The exit code.
fn verdict(report: &Report) -> Result<()> {
    let count = report.damage_count();
    if count > 0 {
        let harmed: Vec<&Affected> = report.volumes.iter().flat_map(|v| &v.affected).collect();
        let reach = match harmed.as_slice() {
            [] => "no data is lost by it".into(),
            [one] => format!("{} cannot be read as a whole", one.name),
            [one, rest @ ..] => {
                format!("{} and {} more cannot be read as a whole", one.name, rest.len())
            }
        };
        let objects = if count == 1 { "1 damage".into() } else { format!("{count} damages") };
        return Err(Error::corrupt(format!("{objects} found, {reach}")).hint(
            "try --repair, restore the objects from a copy of the bucket, or write the blocks anew",
        ));
    }
    match report.volumes.iter().find_map(|v| Some((&v.name, v.error.as_ref()?))) {
        Some((name, why)) => {
            Err(Error::new(ErrorKind::Busy, format!("{name} was not examined: {why}")))
        }
        None => Ok(()),
    }
}

fn tell(report: &Report) -> String {
    let mut lines = Vec::new();
    lines.extend(report.damages.iter().map(damage));
    for volume in &report.volumes {
        lines.extend(of_volume(volume, report.data));
    }
    for left in &report.nameless {
        let stored = amount(&left.stored);
        lines.push(match &left.deleting {
            Some(name) => format!(
                "{name}: its deletion was begun, {stored} are left; finish it with `objblk delete {name}`"
            ),
            None => format!("{}: a volume without a name, {stored}; `objblk delete {0}`", left.id),
        });
    }
    lines.extend(report.notes.iter().map(|note| format!("note: {note}")));
    if report.volumes.is_empty() && lines.is_empty() {
        lines.push("there are no volumes".into());
    }
    lines.join("\n")
}

fn of_volume(volume: &VolumeReport, data: bool) -> Vec<String> {
    let name = &volume.name;
    if let Some(why) = &volume.error {
        return vec![format!("{name}: not examined: {why}")];
    }
    let sound = match (volume.is_sound(), data) {
        (false, _) => "DAMAGED",
        (true, true) => "every byte is whole",
        (true, false) => "whole, but for data that was not read (--data)",
    };
    let (chunks, items, snapshots) = (volume.chunks, volume.map_items, volume.snapshots);
    let mut lines = vec![format!(
        "{name}: {sound}; {chunks} chunks, {items} parts of maps, {snapshots} snapshots"
    )];
    lines.extend(volume.damages.iter().take(SHOWN).map(damage));
    let more = volume.damages.len().saturating_sub(SHOWN) as u64 + volume.more_damages;
    if more > 0 {
        lines.push(format!("  and {more} more, which --json shows"));
    }
    lines.extend(volume.affected.iter().flat_map(affected));
    if let Some(space) = &volume.space {
        let (pending, orphans) = (&space.pending, &space.orphans);
        if space.past.objects > 0 {
            lines.push(format!("  {} are kept for the past only", amount(&space.past)));
        }
        if pending.objects > 0 {
            lines.push(format!("  {} wait for deletion, or to be used", amount(pending)));
        }
        if orphans.objects > 0 {
            let first = space.orphans_named.first().map_or("", String::as_str);
            lines.push(format!("  {} are needed by nobody, as {first}", amount(orphans)));
        }
        if space.damaged.objects > 0 {
            let first = space.damaged_named.first().map_or("", String::as_str);
            let damaged = amount(&space.damaged);
            lines.push(format!("  {damaged} of what nobody needs are damaged, as {first}"));
        }
    }
    lines.extend(volume.notes.iter().map(|note| format!("  note: {note}")));
    lines
}

fn damage(damage: &Damage) -> String {
    match &damage.object {
        Some(object) if !damage.what.contains(object.as_str()) => {
            format!("  {object}: {}", damage.what)
        }
        _ => format!("  {}", damage.what),
    }
}

fn affected(affected: &Affected) -> Vec<String> {
    let name = &affected.name;
    if affected.whole {
        return vec![format!("  {name} cannot be attached")];
    }
    let bytes = size::show(affected.sectors << crate::units::SECTOR_SHIFT);
    let mut lines = vec![format!("  {name}: {bytes} cannot be read:")];
    let shown = affected.runs.iter().take(SHOWN);
    lines
        .extend(shown.map(|run| format!("    sectors {}..{}", run.sector, run.sector + run.count)));
    if affected.runs.len() > SHOWN {
        lines
            .push(format!("    and {} more runs, which --json shows", affected.runs.len() - SHOWN));
    }
    lines
}

fn amount(amount: &Amount) -> String {
    let objects = if amount.objects == 1 { "object" } else { "objects" };
    format!("{} {objects} ({})", amount.objects, size::show(amount.bytes))
}
