/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Sockets and addresses. */
#ifndef OUTGUARD_SOCKET_H
#define OUTGUARD_SOCKET_H

#define SOCKADDR_SIZE 128 /* the kernel's own bound, sizeof(sockaddr_storage) */

/* s is all zero before. */
static __always_inline void fill_sock(struct socket_body *s, struct sock *sk)
{
	struct socket_label *label;

	s->family = sk->__sk_common.skc_family;
	s->type = sk->sk_type;
	s->protocol = sk->sk_protocol;
	s->kernel = BPF_CORE_READ_BITFIELD(sk, sk_kern_sock) != 0;
	s->cookie = bpf_get_socket_cookie(sk);
	label = bpf_sk_storage_get(&labels, sk, 0, 0);
	if (!label)
		return;
	s->owned = OWNER_LABELLED;
	s->owner = label->owner;
	s->owner_exec_id = label->exec_id;
}

/* s is all zero before. */
static __always_inline void fill_socket(struct socket_body *s, struct socket *sock)
{
	struct sock *sk = sock->sk;

	if (sk)
		fill_sock(s, sk);
}

static __always_inline __u32 put_raw(struct scratch *sc, __u32 at, const void *from, __u32 length)
{
	barrier_var(length);
	if (length == 0)
		return at;
	if (length > SOCKADDR_SIZE)
		length = SOCKADDR_SIZE;
	if (bpf_probe_read_kernel(&sc->record[at + 8], length, from))
		return at;
	return close_tail(sc, at, TAG_ADDRESS, 0, length);
}

/* a is all zero before. Returns where the record ends. */
static __always_inline __u32 put_address(struct scratch *sc, struct address_body *a, struct sockaddr *from, int length)
{
	__u32 at = sizeof(struct socket_address_record);
	union {
		__u16 family;
		struct sockaddr_in in;
		struct sockaddr_in6 in6;
	} given = {};
	__u32 head = length;

	a->length = length;
	if (length < 2)
		return at;
	barrier_var(head);
	if (head > sizeof(given))
		head = sizeof(given);
	bpf_probe_read_kernel(&given, head, from);
	a->family = given.family;
	switch (given.family) {
	case AF_INET:
		__builtin_memcpy(a->port, given.in.sin_port, 2);
		__builtin_memcpy(a->addr4, given.in.sin_addr, 4);
		return at;
	case AF_INET6:
		__builtin_memcpy(a->port, given.in6.sin6_port, 2);
		__builtin_memcpy(a->addr6, given.in6.sin6_addr, 16);
		a->flow_info = given.in6.sin6_flowinfo;
		a->scope = given.in6.sin6_scope_id;
		return at;
	case AF_UNIX:
		return put_raw(sc, at, (void *)from + 2, length - 2);
	}
	return put_raw(sc, at, from, length);
}

/* What the socket itself is bound to. */
static __always_inline __u32 put_local(struct scratch *sc, struct address_body *a, struct sock *sk)
{
	__u32 at = sizeof(struct socket_address_record);
	__u16 port = __builtin_bswap16(sk->__sk_common.skc_num);
	struct unix_address *un;
	int length;

	a->family = sk->__sk_common.skc_family;
	switch (a->family) {
	case AF_INET:
		a->length = sizeof(struct sockaddr_in);
		__builtin_memcpy(a->port, &port, 2);
		bpf_probe_read_kernel(a->addr4, 4, &sk->__sk_common.skc_rcv_saddr);
		return at;
	case AF_INET6:
		a->length = sizeof(struct sockaddr_in6);
		__builtin_memcpy(a->port, &port, 2);
		bpf_probe_read_kernel(a->addr6, 16, &sk->__sk_common.skc_v6_rcv_saddr);
		return at;
	case AF_UNIX:
		un = BPF_CORE_READ((struct unix_sock *)sk, addr);
		length = un ? BPF_CORE_READ(un, len) : 0;
		a->length = length;
		if (length > 2)
			return put_raw(sc, at, (void *)&un->name[0] + 2, length - 2);
	}
	return at;
}

static __always_inline void report_address(struct socket *sock, struct sockaddr *address, int length, __u16 type)
{
	struct task_struct *t = bpf_get_current_task_btf();
	struct agent_config *c = get_config();
	struct socket_address_record *r;
	struct scratch *sc;
	__u32 policy, at;

	if (!reports_canary(c, type, t, address->sa_family == AF_UNIX, &policy))
		return;
	sc = take_scratch(t, CLASS_BULK, policy);
	if (!sc)
		return;
	r = (void *)sc->record;
	__builtin_memset(r, 0, sizeof(*r));
	fill_subject(&r->subject, t);
	fill_socket(&r->socket, sock);
	at = put_address(sc, &r->address, address, length);
	emit(c, sc->busy, t, &r->header, at, type, CLASS_BULK);
	drop_scratch(sc);
}

static __always_inline void report_accept(struct socket *sock)
{
	struct task_struct *t = bpf_get_current_task_btf();
	struct agent_config *c = get_config();
	struct socket_address_record *r;
	struct scratch *sc;
	struct sock *sk = sock->sk;
	__u32 policy, at;

	if (!reports_canary(c, SOCKET_ACCEPT, t, true, &policy))
		return;
	sc = take_scratch(t, CLASS_BULK, policy);
	if (!sc)
		return;
	r = (void *)sc->record;
	__builtin_memset(r, 0, sizeof(*r));
	at = sizeof(*r);
	fill_subject(&r->subject, t);
	if (sk) {
		fill_sock(&r->socket, sk);
		at = put_local(sc, &r->address, sk);
	}
	emit(c, sc->busy, t, &r->header, at, SOCKET_ACCEPT, CLASS_BULK);
	drop_scratch(sc);
}

#endif
