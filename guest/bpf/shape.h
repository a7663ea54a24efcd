/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The records of the hooks beyond the first twelve: a few shapes. They are built
 * in the task's scratch, so that what the kernel asks the hooks while a digest
 * is taken stays out here as well. All but what is digested is read through probes: a hook's
 * arguments may be NULL where the kernel's types do not say so.
 */
#ifndef OUTGUARD_SHAPE_H
#define OUTGUARD_SHAPE_H

#define NAME_SIZE 256
#define VALUE_SIZE 1024

/* Zero the body of any shape and say who acts. */
static __noinline struct scratch *prepare(struct task_struct *t, __u8 class, __u32 policy)
{
	struct scratch *sc = take_scratch(t, class, policy);
	struct objects_record *r;

	if (!sc)
		return NULL;
	r = (void *)sc->record;
	__builtin_memset(r, 0, sizeof(*r));
	fill_subject(&r->subject, t);
	return sc;
}

/* Asked: a canary would have done just this; see reports_canary. */
static __always_inline struct scratch *begin_canary(__u32 type, __u8 class, bool asked)
{
	struct task_struct *t = bpf_get_current_task_btf();
	__u32 policy;

	return reports_canary(get_config(), type, t, asked, &policy) ? prepare(t, class, policy) : NULL;
}

static __always_inline struct scratch *begin(__u32 type, __u8 class)
{
	return begin_canary(type, class, false);
}

/* A canary's file has no name in any directory. */
static __always_inline bool is_nameless(struct file *file)
{
	return file && BPF_CORE_READ(file, f_inode, i_nlink) == 0;
}

/* Send what is built up to at, held to the policy that begin found. */
static __noinline int finish(struct scratch *sc, __u32 at, __u16 type, __u8 class)
{
	struct task_struct *t = bpf_get_current_task_btf();
	struct agent_config *c = get_config();

	barrier_var(at);
	if (at <= RECORD_ROOM - 8) {
		if (class == CLASS_CRITICAL)
			emit_critical(c, t, (void *)sc->record, at, type);
		else
			emit_file(c, sc->busy, t, (void *)sc->record, at, type, CLASS_BULK, sc,
				  at > sizeof(struct object_record) ? sizeof(struct object_record) : 0);
	}
	drop_scratch(sc);
	return 0;
}

/* A string of the kernel's as a tail at record[at]. */
static __noinline __u32 put_text(struct scratch *sc, __u32 at, __u16 tag, const char *from)
{
	long n;

	if (!from || at > RECORD_ROOM - 16 - NAME_SIZE)
		return at;
	n = bpf_probe_read_kernel_str(&sc->record[at + 8], NAME_SIZE, from);
	if (n <= 1 || n > NAME_SIZE)
		return at;
	return close_tail(sc, at, tag, n == NAME_SIZE ? TAIL_TRUNCATED : 0, n - 1);
}

/* Bytes of the kernel's as a tail at record[at]. */
static __noinline __u32 put_bytes(struct scratch *sc, __u32 at, __u16 tag, const void *from, __u64 size)
{
	__u16 flags = size > VALUE_SIZE ? TAIL_TRUNCATED : 0;

	if (!from || !size || at > RECORD_ROOM - 16 - VALUE_SIZE)
		return at;
	barrier_var(size);
	if (size > VALUE_SIZE)
		size = VALUE_SIZE;
	if (bpf_probe_read_kernel(&sc->record[at + 8], size, from))
		return close_tail(sc, at, tag, TAIL_TRUNCATED, 0);
	return close_tail(sc, at, tag, flags, size);
}

/* Credentials as a tail at record[at]; may be NULL. */
static __noinline __u32 put_cred(struct scratch *sc, __u32 at, const struct cred *c)
{
	struct cred_tail *to;

	if (!c || at > RECORD_ROOM - 16 - sizeof(*to))
		return at;
	barrier_var(at);
	to = (void *)&sc->record[at + 8];
	to->uid = BPF_CORE_READ(c, uid.val);
	to->euid = BPF_CORE_READ(c, euid.val);
	to->suid = BPF_CORE_READ(c, suid.val);
	to->gid = BPF_CORE_READ(c, gid.val);
	to->egid = BPF_CORE_READ(c, egid.val);
	to->sgid = BPF_CORE_READ(c, sgid.val);
	to->fsuid = BPF_CORE_READ(c, fsuid.val);
	to->fsgid = BPF_CORE_READ(c, fsgid.val);
	bpf_probe_read_kernel(&to->cap_eff, sizeof(to->cap_eff), &c->cap_effective);
	to->securebits = BPF_CORE_READ(c, securebits);
	to->reserved = 0;
	return close_tail(sc, at, TAG_CRED, 0, sizeof(*to));
}

/* Fills id, and returns the task's exec id. */
static __always_inline __u32 probe_task(struct task_id *id, struct task_struct *t)
{
	id->pid = BPF_CORE_READ(t, pid);
	id->tgid = BPF_CORE_READ(t, tgid);
	id->start_ns = BPF_CORE_READ(t, start_boottime);
	return (__u32)BPF_CORE_READ(t, self_exec_id);
}

/* A task as a tail at record[at]; may be NULL. */
static __noinline __u32 put_task(struct scratch *sc, __u32 at, __u16 tag, struct task_struct *t)
{
	struct task_tail *to;

	if (!t || at > RECORD_ROOM - 16 - sizeof(*to))
		return at;
	barrier_var(at);
	to = (void *)&sc->record[at + 8];
	to->exec_id = probe_task(&to->task, t);
	to->reserved = 0;
	return close_tail(sc, at, tag, 0, sizeof(*to));
}

static __always_inline __u64 *args_of(struct scratch *sc)
{
	return ((struct args_record *)sc->record)->args;
}

static __always_inline int send_args(struct scratch *sc, __u16 type, __u8 class)
{
	return finish(sc, sizeof(struct args_record), type, class);
}

static __noinline struct task_record *fill_target(struct scratch *sc, struct task_struct *p)
{
	struct task_record *r = (void *)sc->record;

	r->target_exec_id = probe_task(&r->target, p);
	return r;
}

static __always_inline int send_task(struct scratch *sc, __u16 type, __u8 class)
{
	return finish(sc, sizeof(struct task_record), type, class);
}

/* What a hook is about that is told no mount. Returns where the record ends. */
static __noinline __u32 put_dentry(struct scratch *sc, struct dentry *d)
{
	struct object_record *r = (void *)sc->record;

	fill_inode(&r->file, BPF_CORE_READ(d, d_inode), BPF_CORE_READ(d, d_sb));
	r->file.path_kind = PATH_VOLUME;
	return put_walk(sc, sizeof(*r), TAG_PATH, d, NULL);
}

/*
 * A file system, by its root and the name of its type; its flags become args[flags].
 * Returns where the record ends.
 */
static __always_inline __u32 put_volume(struct scratch *sc, struct super_block *sb, __u32 flags)
{
	struct object_record *r = (void *)sc->record;
	__u32 at = put_dentry(sc, BPF_CORE_READ(sb, s_root));

	r->args[flags] = BPF_CORE_READ(sb, s_flags);
	return put_text(sc, at, TAG_VALUE, BPF_CORE_READ(sb, s_type, name));
}

static __always_inline __u8 current_kind(void)
{
	struct task_struct *t = bpf_get_current_task_btf();

	return path_kind(t, mounts_of(t));
}

static __noinline __u32 put_mounted(struct scratch *sc, struct dentry *d, struct vfsmount *mnt)
{
	struct object_record *r = (void *)sc->record;

	fill_inode(&r->file, BPF_CORE_READ(d, d_inode), BPF_CORE_READ(d, d_sb));
	r->file.path_kind = current_kind();
	return put_walk(sc, sizeof(*r), TAG_PATH, d, mnt);
}

/* The file may be NULL. */
static __noinline __u32 put_opened(struct scratch *sc, struct file *file)
{
	struct object_record *r = (void *)sc->record;

	if (!file)
		return sizeof(*r);
	r->file.flags = BPF_CORE_READ(file, f_flags);
	return put_mounted(sc, BPF_CORE_READ(file, f_path.dentry), BPF_CORE_READ(file, f_path.mnt));
}

/* With the digest of what is open to be read; never NULL. The program may sleep. */
static __noinline __u32 put_digested(struct scratch *sc, struct file *file)
{
	struct file_body *f = &((struct object_record *)sc->record)->file;
	__u32 at = put_opened(sc, file);

	f->digested = digest_for(f, file, file->f_inode, false, true);
	return at;
}

static __always_inline __u64 *object_args(struct scratch *sc)
{
	return ((struct object_record *)sc->record)->args;
}

/* Who may write into the directory that a name is made in, or taken from. */
static __always_inline void put_dir(__u64 *args, struct inode *dir)
{
	args[0] = BPF_CORE_READ(dir, i_uid.val);
	args[1] = BPF_CORE_READ(dir, i_gid.val);
	args[2] = BPF_CORE_READ(dir, i_mode);
}

static __always_inline __u64 *objects_args(struct scratch *sc)
{
	return ((struct objects_record *)sc->record)->args;
}

/* Two names without their mounts. */
static __noinline __u32 put_dentries(struct scratch *sc, struct dentry *a, struct dentry *b)
{
	struct objects_record *r = (void *)sc->record;
	__u32 at;

	fill_inode(&r->file, BPF_CORE_READ(a, d_inode), BPF_CORE_READ(a, d_sb));
	fill_inode(&r->file2, BPF_CORE_READ(b, d_inode), BPF_CORE_READ(b, d_sb));
	r->file.path_kind = r->file2.path_kind = PATH_VOLUME;
	at = put_walk(sc, sizeof(*r), TAG_PATH, a, NULL);
	return put_walk(sc, at, TAG_PATH2, b, NULL);
}

static __noinline __u32 put_paths(struct scratch *sc, const struct path *a, const struct path *b)
{
	struct objects_record *r = (void *)sc->record;
	struct dentry *da = BPF_CORE_READ(a, dentry), *db = BPF_CORE_READ(b, dentry);
	__u32 at;

	fill_inode(&r->file, BPF_CORE_READ(da, d_inode), BPF_CORE_READ(da, d_sb));
	fill_inode(&r->file2, BPF_CORE_READ(db, d_inode), BPF_CORE_READ(db, d_sb));
	r->file.path_kind = r->file2.path_kind = current_kind();
	at = put_walk(sc, sizeof(*r), TAG_PATH, da, BPF_CORE_READ(a, mnt));
	return put_walk(sc, at, TAG_PATH2, db, BPF_CORE_READ(b, mnt));
}

static __always_inline int send_socket(struct scratch *sc, __u16 type)
{
	return finish(sc, sizeof(struct socket_record), type, CLASS_BULK);
}

static __always_inline __u64 *socket_args(struct scratch *sc)
{
	return ((struct socket_record *)sc->record)->args;
}

static __always_inline struct socket_body *socket_of(struct scratch *sc)
{
	return &((struct socket_record *)sc->record)->socket;
}

static __always_inline struct socket_body *other_of(struct scratch *sc)
{
	return &((struct sockets_record *)sc->record)->socket2;
}

/* The name that an af_unix socket is bound to. */
static __noinline __u32 put_unix(struct scratch *sc, struct sock *sk)
{
	__u32 at = sizeof(struct sockets_record);
	struct unix_address *un;
	int length;

	if (BPF_CORE_READ(sk, __sk_common.skc_family) != AF_UNIX)
		return at;
	un = BPF_CORE_READ((struct unix_sock *)sk, addr);
	length = un ? BPF_CORE_READ(un, len) : 0;
	return length > 2 ? put_raw(sc, at, (void *)&un->name[0] + 2, length - 2) : at;
}

static __noinline __u32 put_to(struct scratch *sc, void *name, int length)
{
	struct socket_address_record *r = (void *)sc->record;

	if (!name || length <= 0 || length > SOCKADDR_SIZE)
		return sizeof(*r);
	return put_address(sc, &r->address, name, length);
}

/* Who is at the other end of a connection. */
static __noinline __u32 put_peer(struct scratch *sc, struct sock *sk)
{
	struct address_body *a = &((struct socket_address_record *)sc->record)->address;
	__u16 port = BPF_CORE_READ(sk, __sk_common.skc_dport);

	a->family = BPF_CORE_READ(sk, __sk_common.skc_family);
	switch (a->family) {
	case AF_INET:
		a->length = sizeof(struct sockaddr_in);
		__builtin_memcpy(a->port, &port, 2);
		bpf_probe_read_kernel(a->addr4, 4, &sk->__sk_common.skc_daddr);
		break;
	case AF_INET6:
		a->length = sizeof(struct sockaddr_in6);
		__builtin_memcpy(a->port, &port, 2);
		bpf_probe_read_kernel(a->addr6, 16, &sk->__sk_common.skc_v6_daddr);
	}
	return sizeof(struct socket_address_record);
}

/* The object may be NULL: a question about all of them. */
static __noinline __u64 *fill_ipc(struct scratch *sc, struct kern_ipc_perm *p)
{
	struct ipc_record *r = (void *)sc->record;

	if (p) {
		r->ipc.key = BPF_CORE_READ(p, key);
		r->ipc.id = BPF_CORE_READ(p, id);
		r->ipc.uid = BPF_CORE_READ(p, uid.val);
		r->ipc.gid = BPF_CORE_READ(p, gid.val);
		r->ipc.cuid = BPF_CORE_READ(p, cuid.val);
		r->ipc.cgid = BPF_CORE_READ(p, cgid.val);
		r->ipc.mode = BPF_CORE_READ(p, mode);
	}
	return r->args;
}

/* Who made p, if its making was seen, as a tail. Returns where the record ends. */
static __noinline __u32 put_owner(struct scratch *sc, struct kern_ipc_perm *p)
{
	__u32 at = sizeof(struct ipc_record);
	__u64 key = (__u64)p;
	struct socket_label *label;
	struct task_tail *to;

	label = bpf_map_lookup_elem(&ipc_labels, &key);
	if (!label)
		return at;
	to = (void *)&sc->record[at + 8];
	to->task = label->owner;
	to->exec_id = label->exec_id;
	to->reserved = 0;
	return close_tail(sc, at, TAG_OWNER, 0, sizeof(*to));
}

static __always_inline int send_ipc(struct scratch *sc, struct kern_ipc_perm *p, __u16 type)
{
	return finish(sc, put_owner(sc, p), type, CLASS_BULK);
}

static __always_inline __u64 cap_of(const void *cap)
{
	__u64 v = 0;

	bpf_probe_read_kernel(&v, sizeof(v), cap);
	return v;
}

#endif
