# SPDX-License-Identifier: LGPL-2.1-or-later
# The network as production had it. A target's variables: TARGET_HOST, TARGET_ADDRESS (the server, at
# load time), TARGET_NET_NAME, _CARDS (MACs), _BOND, _VLAN, _MAC, _MTU, _DHCP, _CLIENT (who production
# is to the DHCP server), _ADDRESSES, _ROUTES (DESTINATION,GATEWAY), _DNS, _TIMEOUT. What is up is NET_UP, on NET_DEVICE.

NET_UP='' NET_DOWN='' NET_WHY='' NET_DEVICE='' NET_NOTE='' NET_DNS=''

# network_up: set up the current target's interface, once; fail says what is wrong with it.
network_up() {
  net_key="$TARGET_NET_CARDS/$TARGET_NET_BOND/$TARGET_NET_VLAN/$TARGET_NET_DHCP/$TARGET_NET_ADDRESSES"
  if [ "$NET_UP" = "$net_key" ]; then
    network_routes
    return 0
  fi
  if [ "$NET_DOWN" = "$net_key" ]; then
    fail "$NET_WHY"
    return 1
  fi
  network_down
  net_until=$(($(now) + TARGET_NET_TIMEOUT * 100))
  if network_device && network_addresses; then
    NET_UP=$net_key
    network_routes
    network_resolvers
    say "network on $NET_DEVICE ($TARGET_NET_NAME): $(network_shown)${NET_NOTE:+; $NET_NOTE}"
    return 0
  fi
  NET_DOWN=$net_key NET_WHY=$WHY
  network_down
  return 1
}

# Let go of what another target has used: two interfaces would dispute the routes.
network_down() {
  [ -z "$NET_DEVICE" ] || {
    bounded 10 ip addr flush dev "$NET_DEVICE"
    bounded 10 ip link set "$NET_DEVICE" down
  }
  NET_UP='' NET_DEVICE='' NET_NOTE='' NET_DNS=''
} 2>/dev/null

network_shown() {
  bounded 10 ip addr show dev "$NET_DEVICE" |
    sed -n 's/^ *inet6* \([^ ]*\) .*/\1/p' | tr '\n' ' ' | sed 's/ $//'
}

# network_card MAC: print the card that has it, if its driver has made it.
network_card() {
  # production may have had it under another MAC, that an earlier target has set
  [ -r "$TMP/card-$1" ] && cat "$TMP/card-$1" && return 0
  for at in /sys/class/net/*; do
    # bonds and VLANs have MACs of their cards
    if [ ! -e "$at/device" ] || ! read -r mac <"$at/address" || [ "$mac" != "$1" ]; then
      continue
    fi
    echo "${at##*/}"
    echo "${at##*/}" >"$TMP/card-$1"
    return 0
  done
  return 1
}

# The target's cards, in $cards. A bond does with those that are there, after a third of the time.
network_cards() {
  enough=$(($(now) + TARGET_NET_TIMEOUT * 100 / 3))
  while :; do
    cards='' missing=''
    for mac in $TARGET_NET_CARDS; do
      card=$(network_card "$mac") || missing="$missing${missing:+ }$mac"
      cards="$cards${card:+ $card}"
    done
    [ -n "$missing" ] || return 0
    at=$(now) why="no network card has the address $missing ($TARGET_NET_NAME)"
    if [ -n "$cards" ] && [ "$at" -ge "$enough" ]; then
      say "$why"
      return 0
    fi
    if [ "$at" -ge "$net_until" ]; then
      fail "$why"
      return 1
    fi
    usleep 200000
  done
}

# Everything up to a device with carrier, in NET_DEVICE.
network_device() {
  bounded 10 ip link set lo up
  network_cards || return 1
  if [ -n "$TARGET_NET_BOND" ]; then
    # shellcheck disable=SC2086  # several
    network_bond $cards || return 1
  else
    NET_DEVICE=${cards# }
  fi
  [ -z "$TARGET_NET_MAC" ] || bounded 10 ip link set "$NET_DEVICE" address "$TARGET_NET_MAC"
  if [ -n "$TARGET_NET_VLAN" ]; then
    network_ready "$NET_DEVICE" || return 1
    lower=$NET_DEVICE NET_DEVICE=vlan$TARGET_NET_VLAN
    [ -d "/sys/class/net/$NET_DEVICE" ] ||
      bounded 10 ip link add link "$lower" name "$NET_DEVICE" type vlan id "$TARGET_NET_VLAN" || {
      fail "cannot make the VLAN $TARGET_NET_VLAN on $lower"
      return 1
    }
  fi
  # shellcheck disable=SC2153  # it is another one
  [ "$TARGET_NET_MTU" = 1500 ] || bounded 10 ip link set "$NET_DEVICE" mtu "$TARGET_NET_MTU"
  network_ready "$NET_DEVICE"
}

# network_bond CARD...: the module makes bond0 as it is loaded.
network_bond() {
  NET_DEVICE=bond0
  files=/sys/class/net/bond0/bonding
  [ -d $files ] || echo +bond0 >/sys/class/net/bonding_masters
  bounded 10 ip link set bond0 down
  for word in $TARGET_NET_BOND; do
    echo "${word#*=}" >"$files/${word%%=*}" || say "bond0 does not take $word"
  done
  for slave; do
    bounded 10 ip link set "$slave" down
    echo "+$slave" >$files/slaves || say "bond0 does not take $slave"
  done
  read -r slaves <$files/slaves
  [ -n "$slaves" ] && return 0
  fail "cannot make the bond of $*"
  return 1
} 2>/dev/null

# network_ready DEVICE: up, and with carrier.
network_ready() {
  # nobody else has taken these addresses within the last minutes
  echo 0 >"/proc/sys/net/ipv6/conf/$1/dad_transmits"
  if ! bounded 10 ip link set "$1" up; then
    fail "cannot set up $1 ($TARGET_NET_NAME)"
    return 1
  fi
  reset_at=$((($(now) + net_until) / 2))
  until [ "$(cat "/sys/class/net/$1/carrier")" = 1 ]; do
    if [ "$(now)" -ge "$net_until" ]; then
      fail "no carrier on $1 ($TARGET_NET_NAME) within $TARGET_NET_TIMEOUT s"
      return 1
    fi
    # some cards come out of the crash with a link that only a reset brings back
    if [ "$(now)" -ge "$reset_at" ]; then
      reset_at=$net_until
      bounded 10 ip link set "$1" down && bounded 10 ip link set "$1" up
    fi
    usleep 200000
  done
} 2>/dev/null

# Addresses, by DHCP where production had them so. Its last one is better than none: the lease is
# this host's still, and whoever answers there proves it.
network_addresses() {
  if [ "$TARGET_NET_DHCP" = 1 ]; then
    network_dhcp && return 0
    NET_NOTE="no DHCP answer on $NET_DEVICE within $dhcp_seconds s"
    if [ -z "$TARGET_NET_ADDRESSES" ]; then
      fail "$NET_NOTE"
      return 1
    fi
    NET_NOTE="$NET_NOTE, tried with the last address"
    say "$NET_NOTE"
  fi
  for address in $TARGET_NET_ADDRESSES; do
    bounded 10 ip addr add "$address" dev "$NET_DEVICE" || {
      fail "cannot give $NET_DEVICE the address $address"
      return 1
    }
  done
  NET_DNS=$TARGET_NET_DNS
}

# What is left of the network's time, 5 s at least, for a DHCP server to answer.
network_dhcp() {
  dhcp_seconds=$(((net_until - $(now)) / 100))
  [ "$dhcp_seconds" -ge 5 ] || dhcp_seconds=5
  export LEASE="$TMP/lease"
  rm -f "$LEASE"
  last=${TARGET_NET_ADDRESSES%%/*}
  # shellcheck disable=SC2086  # both words or none
  bounded "$dhcp_seconds" udhcpc -f -q -n -t "$dhcp_seconds" -T 2 -i "$NET_DEVICE" \
    ${last:+-r $last} ${TARGET_NET_CLIENT:+-x 0x3d:$TARGET_NET_CLIENT} -s "$ETC/udhcpc" </dev/null >>"$LOG" 2>&1
  [ -s "$LEASE" ] || return 1
  lease_ip='' lease_mask='' lease_router='' lease_dns='' lease_staticroutes=''
  # shellcheck source=/dev/null
  . "$LEASE"
  bounded 10 ip addr add "$lease_ip/${lease_mask:-24}" dev "$NET_DEVICE" || return 1
  case " $TARGET_NET_ADDRESSES" in
    *" $lease_ip/"*) ;;
    *) NET_NOTE="DHCP gave $lease_ip, and not ${last:-what production had}" ;;
  esac
  NET_DNS=${lease_dns:-$TARGET_NET_DNS}
  if [ -n "$lease_staticroutes" ]; then
    # shellcheck disable=SC2086  # pairs; RFC 3442: the router does not count beside them
    set -- $lease_staticroutes
    while [ $# -ge 2 ]; do
      network_route "$1" "$2"
      shift 2
    done
  else
    for router in $lease_router; do
      network_route default "$router" && break
    done
  fi
  return 0
}

# network_route DESTINATION GATEWAY
network_route() {
  # the gateway may be outside of the address's own network
  case $2 in *.*) bounded 10 ip route add "$2/32" dev "$NET_DEVICE" ;; esac
  bounded 10 ip route add "$1" via "$2" dev "$NET_DEVICE"
} 2>/dev/null

# Production's routes. Those of a lease came first and stay.
network_routes() {
  for route in $TARGET_NET_ROUTES; do
    network_route "${route%%,*}" "${route#*,}"
  done
  return 0
}

network_resolvers() {
  for server in $NET_DNS; do
    echo "nameserver $server"
  done >/etc/resolv.conf
}

# Print the server's address: the name is asked for again, the answer at load time is the fallback.
network_address() {
  address=$TARGET_ADDRESS
  if [ "$TARGET_HOST" != "$TARGET_ADDRESS" ] && [ -n "$NET_DNS" ]; then
    found=$(bounded 10 nslookup "$TARGET_HOST" </dev/null 2>/dev/null | network_answers)
    case " $found " in
      *" $TARGET_ADDRESS "* | '  ') ;;
      *)
        address=${found%% *}
        say "$TARGET_HOST is $address now, and was $TARGET_ADDRESS when the crash kernel was loaded"
        ;;
    esac
  fi
  # link-local addresses need an interface
  case $address in fe80:*) address=$address%$NET_DEVICE ;; esac
  echo "$address"
}

# Of nslookup's words the addresses of the family that is set up, in one line.
network_answers() {
  case $TARGET_ADDRESS in *:*) like=: ;; *) like='\.' ;; esac
  sed -n '/^Name:/,$ s/^Address[ 0-9]*:[[:space:]]*\([0-9a-fA-F.:]*\).*$/\1/p' |
    grep "$like" | tr '\n' ' ' | sed 's/ $//'
}

# The last line of a program's complaints, and what was odd about the network.
network_why() {
  line=$(grep -v '^[[:space:]]*$' "$1" 2>/dev/null | tail -n 1 | tr -d '\r')
  printf %s "${line:-no answer}${NET_NOTE:+ ($NET_NOTE)}"
}
