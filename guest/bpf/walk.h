/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What a name in a directory is called, where the kernel tells a hook no open
 * file: bpf_d_path takes nothing else, and few hooks may call it.
 */
#ifndef OUTGUARD_WALK_H
#define OUTGUARD_WALK_H

#define WALK_DEPTH 128 /* elements of a path; one that has more loses the first ones */
#define WALK_SIZE 3072
#define NAME_LIMIT 255 /* NAME_MAX */

/*
 * A walk from a name up to the root, and down again. It stands at the end of the
 * scratch: what is on the stack the verifier follows, through every turn of a
 * loop apart.
 */
struct walk {
	__u64 at;    /* the dentry */
	__u64 mount; /* struct mount; 0: none is told */
	__u64 root;  /* the task's root: a dentry */
	__u64 root_mount;
	__u32 count;
	__u32 end; /* of what is written */
	__u32 limit;
	__u16 met; /* the task's root */
	__u16 cut;
	__u64 kept[WALK_DEPTH];
};

#define WALK_AT ((RECORD_ROOM - sizeof(struct walk)) & ~7UL)

_Static_assert(sizeof(struct objects_record) + 2 * (8 + WALK_SIZE + 8) <= WALK_AT, "two paths have room");

static __always_inline struct walk *walk_of(struct scratch *sc)
{
	return (void *)sc + __builtin_offsetof(struct scratch, record) + WALK_AT;
}

/* Keep the dentry and go on to its parent, or to where its mount is. */
static long climb(__u32 i, struct walk_in *in)
{
	volatile struct walk *w = walk_of(in->sc);
	__u64 at = w->at, mount = w->mount;
	struct dentry *d = (void *)at;
	struct mount *m = (void *)mount;
	__u64 parent, above;
	__u32 slot;

	parent = (__u64)BPF_CORE_READ(d, d_parent);
	if (m && at == w->root && mount == w->root_mount) {
		w->met = 1;
		return 1;
	}
	if (m && at == (__u64)BPF_CORE_READ(m, mnt.mnt_root)) {
		above = (__u64)BPF_CORE_READ(m, mnt_parent);
		if (above == mount)
			return 1;
		w->at = (__u64)BPF_CORE_READ(m, mnt_mountpoint);
		w->mount = above;
		return 0;
	}
	if (!m && parent == at)
		return 1;
	slot = w->count;
	if (slot >= WALK_DEPTH) {
		w->cut = 1;
		return 1;
	}
	w->kept[slot] = at;
	w->count = slot + 1;
	if (parent == at) /* in no directory: a pipe, a memfd */
		return 1;
	w->at = parent;
	return 0;
}

/* Write the name of the last dentry that was kept and is not written yet. */
static long descend(__u32 i, struct walk_in *in)
{
	struct scratch *sc = in->sc;
	volatile struct walk *w = walk_of(sc);
	__u32 slot = w->count - 1, end = w->end, length;
	struct dentry *d;

	if (slot >= WALK_DEPTH || end > WALK_AT - NAME_LIMIT - 1 - 8)
		return 1;
	d = (void *)w->kept[slot];
	length = BPF_CORE_READ(d, d_name.len);
	if (length > NAME_LIMIT)
		length = NAME_LIMIT;
	if (end + 1 + length > w->limit) {
		w->cut = 1;
		return 1;
	}
	sc->record[end] = '/';
	bpf_probe_read_kernel(&sc->record[end + 1], length, BPF_CORE_READ(d, d_name.name));
	w->end = end + 1 + length;
	w->count = slot;
	return slot == 0;
}

/*
 * The path of d as a tail at record[at]: from the task's root if the mount is
 * told, else from the root of d's file system. Names that are being changed at
 * this moment may be a part of the old and a part of the new one.
 */
static __noinline __u32 put_walk(struct scratch *sc, __u32 at, __u16 tag, struct dentry *d, struct vfsmount *mnt)
{
	struct task_struct *t = bpf_get_current_task_btf();
	volatile struct walk *w = walk_of(sc);
	struct walk_in in = {sc};
	__u32 end;
	__u16 flags = 0;

	if (!d || at > WALK_AT - 8 - WALK_SIZE - 8)
		return at;
	w->at = (__u64)d;
	w->mount = (__u64)mnt; /* written and read: what the verifier knows of an address is in the way of counting with it */
	w->mount = mount_of(w->mount);
	w->root = (__u64)BPF_CORE_READ(t, fs, root.dentry);
	w->root_mount = mount_of((__u64)BPF_CORE_READ(t, fs, root.mnt));
	w->count = 0;
	w->met = w->cut = 0;
	bpf_loop(WALK_DEPTH + 64, climb, &in, 0);
	if (w->mount && !w->met)
		flags |= TAIL_UNREACHABLE;
	if (w->count && BPF_CORE_READ(d, d_inode) && !BPF_CORE_READ(d, d_hash.pprev))
		flags |= TAIL_UNLINKED;
	w->end = at + 8;
	w->limit = at + 8 + WALK_SIZE;
	if (w->count) {
		bpf_loop(WALK_DEPTH, descend, &in, 0);
	} else {
		sc->record[at + 8] = '/';
		w->end = at + 9;
	}
	if (w->cut)
		flags |= TAIL_TRUNCATED;
	end = w->end;
	return close_tail(sc, at, tag, flags, end - at - 8);
}

/* f is all zero before. Inode may be NULL: the name is not there yet. */
static __noinline void fill_inode(struct file_body *f, struct inode *inode, struct super_block *sb)
{
	if (inode) {
		f->inode = BPF_CORE_READ(inode, i_ino);
		f->generation = BPF_CORE_READ(inode, i_generation);
		f->uid = BPF_CORE_READ(inode, i_uid.val);
		f->gid = BPF_CORE_READ(inode, i_gid.val);
		f->mode = BPF_CORE_READ(inode, i_mode);
		f->links = BPF_CORE_READ(inode, i_nlink);
		f->size = BPF_CORE_READ(inode, i_size);
	}
	if (!sb)
		return;
	f->dev = BPF_CORE_READ(sb, s_dev);
	f->magic = BPF_CORE_READ(sb, s_magic);
	bpf_probe_read_kernel_str(f->fsid, sizeof(f->fsid), &sb->s_id);
	bpf_probe_read_kernel(f->uuid, sizeof(f->uuid), &sb->s_uuid);
}

#endif
