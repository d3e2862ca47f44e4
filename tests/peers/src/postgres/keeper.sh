# Waits until its standard input closes, which it does when the process that holds the other end has ended, in whatever way. Then
# ends the server of the folder $1, if it runs, and removes the folder.
folder=$1
lock=$folder/data/postmaster.pid
# Who ends the tests at a terminal does not end this before them.
trap '' HUP INT QUIT TERM

# The command line of a process. Of one that has ended nothing, also where nobody has read how.
command_line() {
    if [ -e /proc/self/cmdline ]; then
        tr '\0' ' ' <"/proc/$1/cmdline"
    else
        ps -o args= -p "$1"
    fi
}

# Another process may have its number.
server_runs() {
    case $(command_line "$server") in
        *" $folder/data "*) return 0 ;;
        *) return 1 ;;
    esac
}

while read -r _; do :; done

rounds=0
# What is being made now may come back once or twice.
while [ -e "$folder" ] && [ "$rounds" -lt 100 ]; do
    rounds=$((rounds + 1))
    if [ -e "$lock" ]; then
        server=$(sed -n 1p "$lock")
        # The server's own, by which it knows whether another one uses the data: a key and a number.
        shared_memory=$(sed -n '7s/^ *[0-9]*  *//p' "$lock")
        waited=0
        while server_runs && [ "$waited" -lt 600 ]; do
            # At first as PostgreSQL ends at once by itself, which leaves nothing behind.
            if [ "$waited" -eq 0 ]; then kill -s QUIT "$server"; fi
            if [ "$waited" -ge 200 ]; then kill -s KILL "$server"; fi
            waited=$((waited + 1))
            sleep 0.05
        done
        # It was killed, then or before.
        if [ -e "$lock" ] && [ -n "$shared_memory" ]; then ipcrm -m "$shared_memory"; fi
    fi
    rm -rf "$folder" || sleep 0.05
done
