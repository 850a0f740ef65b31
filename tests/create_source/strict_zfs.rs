//! Are the commands for ZFS ones that it takes? A `zfs` that knows the options of zfs-list(8), zfs-snapshot(8), zfs-clone(8) and
//! zfs-destroy(8) and no others, keeps what was made, and refuses what ZFS refuses.

use std::fs;
use std::os::unix::fs::symlink;

use cinderfs::writer::snapshot::{SnapshotKind, prepare_on};

use crate::fakes::{Machine, name_of, names_like};

/// `state` holds a line for each dataset and snapshot, and after a `|` what a clone was made of.
const ZFS: &str = r#"
state=$root/state
die() { echo "$*" >&2; exit 1; }
usage() { echo "usage: zfs $command" >&2; exit 2; }
exists() { cut -d'|' -f1 "$state" | grep -Fqx -- "$1"; }
command=$1; shift
case $command in
list) options=Hpr:d:o:t:s:S: ;;
snapshot) options=ro: ;;
clone) options=puo: ;;
destroy) options=Rrdnpvf ;;
*) usage ;;
esac
depth=0 type=filesystem,volume properties=
while getopts ":$options" option; do
    case $option in
    \? | :) usage ;;
    d) depth=$OPTARG ;;
    t) type=$OPTARG ;;
    o) properties="$properties $OPTARG" ;;
    H) plain=yes ;;
    esac
done
shift $((OPTIND - 1))
case $command in
list)
    [ $# = 1 ] && [ "$plain$properties" = "yes name" ] || usage
    exists "$1" || die "cannot open '$1': dataset does not exist"
    case $type in volume) between=/ ;; snapshot) between=@ ;; *) usage ;; esac
    [ "$depth" = 1 ] || usage
    cut -d'|' -f1 "$state" | while read -r name; do
        [ "$name" != "${name#"$1$between"}" ] || continue
        rest=${name#"$1$between"}
        case $rest in *[/@]*) ;; *) echo "$name" ;; esac
    done ;;
snapshot)
    [ $# = 1 ] && [ -z "$properties" ] || usage
    case $1 in *@*@*) usage ;; *@?*) ;; *) usage ;; esac
    exists "${1%@*}" || die "cannot open '${1%@*}': dataset does not exist"
    ! exists "$1" || die "cannot create snapshot '$1': dataset already exists"
    echo "$1" >>"$state" ;;
clone)
    [ $# = 2 ] || usage
    for property in $properties; do
        case $property in
        readonly=on | readonly=off | volmode=full | volmode=geom | volmode=dev | volmode=none) ;;
        *) die "bad property list: invalid property '$property'" ;;
        esac
    done
    exists "$1" || die "cannot open '$1': dataset does not exist"
    case $1 in *@*) ;; *) usage ;; esac
    case $2 in *@*) usage ;; esac
    exists "${2%/*}" || die "cannot create '$2': parent does not exist"
    ! exists "$2" || die "cannot create '$2': dataset already exists"
    echo "$2|$1" >>"$state"
    # As the rule of udev has it: no blanks.
    link=$root/dev/zvol/$(printf %s "$2" | tr ' ' +)
    ln -s /dev/null "$link" ;;
destroy)
    [ $# = 1 ] || usage
    exists "$1" || die "could not find any snapshots to destroy; check snapshot names."
    ! grep -Fq -- "|$1" "$state" || die "cannot destroy '$1': snapshot has dependent clones"
    ! grep -Fq -- "$1@" "$state" || die "cannot destroy '$1': volume has children"
    cut -d'|' -f1 "$state" | grep -Fnx -- "$1" | cut -d: -f1 >"$root/line"
    sed -i "$(cat "$root/line")d" "$state"
    case $1 in *@*) ;; *) rm "$root/dev/zvol/$(printf %s "$1" | tr ' ' +)" ;; esac ;;
esac
"#;

const BEFORE: &str = "tank\ntank/my vols\ntank/my vols/web 1\ntank/my vols/web 1@daily\ntank/my vols/db\n";

#[test]
fn a_zfs_that_refuses_what_is_not_documented_takes_our_commands() {
    let machine = Machine::new();
    let links = machine.path("dev/zvol/tank/my+vols");
    fs::create_dir_all(&links).unwrap();
    let volume = links.join("web+1");
    symlink(&machine.device.0, &volume).unwrap();
    fs::write(machine.path("state"), BEFORE).unwrap();
    machine.program("zfs", ZFS);
    let state = || fs::read_to_string(machine.path("state")).unwrap();

    let prepared = prepare_on(&machine.host, &volume, SnapshotKind::Zfs, false).unwrap();
    assert!(prepared.path_to_read().starts_with(&links), "{prepared:?}");
    assert!(prepared.path_to_read().exists());
    let ours = name_of(prepared.path_to_read());
    let made = format!("tank/my vols/web 1@{ours}\ntank/my vols/{ours}|tank/my vols/web 1@{ours}\n");
    assert_eq!(state(), format!("{BEFORE}{made}"));
    prepared.finish().unwrap();
    assert_eq!(state(), BEFORE);

    // The clone of a killed run stands in the way of its snapshot.
    let (dead, ..) = names_like(&ours);
    let left = format!("tank/my vols/web 1@{dead}\ntank/my vols/{dead}|tank/my vols/web 1@{dead}\n");
    fs::write(machine.path("state"), format!("{BEFORE}{left}")).unwrap();
    symlink("/dev/null", links.join(&dead)).unwrap();
    let prepared = prepare_on(&machine.host, &volume, SnapshotKind::Auto, false).unwrap();
    assert!(!state().contains(&dead), "{}", state());
    prepared.finish().unwrap();
    assert_eq!(state(), BEFORE);
}
