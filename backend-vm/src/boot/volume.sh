# Mounts the data: the one disk of the block store that has no part of the system. Wants DATA_PATH, MAY_FORMAT, and VOLUME, the id of
# a volume that was there before the machine, or nothing.
set -eu
root="${PROVISIONER_ROOT:-}"
data="$root$DATA_PATH"
# From the first mount on, this machine formats nothing any more.
mounted="$root/var/lib/provisioner/mounted"
refuse() { echo "$1" >&2; exit 1; }

# All that the system is on, down to its disks: partitions, volumes of LVM, whatever is between.
system="$(lsblk -nrso NAME "$(findmnt -nvro SOURCE /)")"
[ -n "$system" ] || refuse "it is not known which disk has the system"
# With -r, blanks are written as \x20.
disks() {
    lsblk -dbnro NAME,TYPE,SIZE,MODEL | while read -r name type size model; do
        case "$type:$name" in
        disk:zram* | disk:loop* | disk:nbd* | disk:ram*) continue ;;
        disk:*) ;;
        *) continue ;;
        esac
        case "$model" in *Instance*Storage*) continue ;; esac
        [ "$size" -gt 0 ] || continue
        # The serial number of a disk is its id without the dash. Older machines have none.
        serial="$(cat "$root/sys/block/$name/device/serial" 2> /dev/null | tr -d ' \n')" || true
        if [ -n "$VOLUME" ] && [ -n "$serial" ] && [ "$serial" != "$(printf %s "$VOLUME" | tr -d -)" ]; then continue; fi
        if ! printf '%s\n' "$system" | grep -qxF "$name"; then echo "/dev/$name"; fi
    done
}

# One that is taken up is attached after the start.
tries=0
while [ -z "$(disks)" ]; do
    tries=$((tries + 1))
    [ "$tries" -le 600 ] || refuse "no data volume was attached"
    sleep 0.5
done
volume="$(disks)"
[ "$(printf '%s\n' "$volume" | wc -l)" -eq 1 ] || refuse "more than one disk may hold the data: $(echo "$volume" | tr '\n' ' ')"

if mountpoint -q "$data"; then
    [ "$(findmnt -nvro SOURCE "$data")" = "$volume" ] || refuse "$DATA_PATH has another file system"
else
    # 2: nothing was found on it. Anything else says that something is, or that it cannot be read.
    found=0
    blkid -p "$volume" > /dev/null || found=$?
    case "$found" in
    0) ;;
    2)
        [ "$MAY_FORMAT" = yes ] && [ ! -e "$mounted" ] || refuse "the data volume has no file system"
        # It says so also of what it could not read.
        read="$(head -c 1048576 "$volume" && echo whole)" && [ "$(printf %s "$read" | tr -d '\0')" = whole ] ||
            refuse "the data volume is not empty, or cannot be read"
        mkfs.ext4 -q "$volume"
        ;;
    *) refuse "what is on the data volume cannot be told" ;;
    esac
    mkdir -p "$data"
    mount "$volume" "$data"
fi
mkdir -p "$(dirname "$mounted")"
: > "$mounted"
# It may have grown.
resize2fs "$volume" || true
