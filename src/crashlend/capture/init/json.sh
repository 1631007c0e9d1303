# SPDX-License-Identifier: LGPL-2.1-or-later
# JSON out of shell variables.

# A string literal of the printable ASCII in $1. Most have nothing to change in them, and a report has
# dozens: to start three programs for each took longer than all else that a report takes.
json_string() {
  case $1 in
    *[!-A-Za-z0-9_.,:/+=@%\ \(\)]*)
      printf '"%s"' "$(printf %s "$1" | tr '\t\n' '  ' | tr -cd '\040-\176' | sed 's/[\\"]/\\&/g')"
      ;;
    *) printf '"%s"' "$1" ;;
  esac
}

json_bool() {
  case $1 in 1 | yes | true | on) printf true ;; *) printf false ;; esac
}

# An integer, or 0 for what is none.
json_number() {
  case $1 in '' | *[!0-9]*) printf 0 ;; *) printf %s "$1" ;; esac
}

# Words as an array of strings.
json_words() {
  comma=''
  printf '['
  for word in $1; do
    printf %s "$comma"
    json_string "$word"
    comma=', '
  done
  printf ']'
}

# "START-END,START-END" or with blanks, half-open, decimal or 0x, as an array of pairs.
json_ranges() {
  comma=''
  printf '['
  for range in $(printf %s "$1" | tr ',' ' '); do
    case $range in *[!0-9a-fA-Fx-]* | -* | *-) continue ;; *-*) ;; *) continue ;; esac
    printf '%s[%d, %d]' "$comma" $((${range%-*})) $((${range#*-}))
    comma=', '
  done
  printf ']'
}

# Centiseconds as seconds.
json_seconds() {
  printf '%d.%02d' $(($1 / 100)) $(($1 % 100))
}
