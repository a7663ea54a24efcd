#!/bin/sh
# Looks a part up in the list of parts and keeps the answer in a file. The query
# reaches the shell unquoted through eval: the hole that the attack uses.
query=$(httpd -d "${QUERY_STRING#q=}")
printf 'Content-Type: text/plain\r\n\r\n'
eval "grep -i -e $query /srv/data/parts.txt >/var/tmp/answer" || echo "no such part"
cat /var/tmp/answer
