# Retries mail each minute where systemd does not run; elsewhere picoqmail.timer does.
# It says nothing, also where a setting is wrong: see picoqmail check.
* * * * * picoqmail [ -d /run/systemd/system ] || [ ! -x /usr/bin/picoqmail-cron ] || exec /usr/bin/picoqmail-cron
