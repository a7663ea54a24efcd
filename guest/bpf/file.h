/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Files: what they are, what they are called, and the digest of what is in them. */
#ifndef OUTGUARD_FILE_H
#define OUTGUARD_FILE_H

#define PATH_SIZE 4096

/*
 * Files over this size are digested only when they are run or mapped to be
 * run: who opens, locks or asks something of one must not wait for seconds. Their
 * records say "not asked for".
 */
#define DIGEST_LIMIT (64LL << 20)

/*
 * The kernel reads a file for its digest without being preempted (6.1, 6.12) and
 * without looking at signals, and a hole is as long as anybody likes: beyond this,
 * what is run has none either. At the slowest it takes seconds.
 */
#define RUN_LIMIT (512LL << 20)

/* The file systems that TSEM calls pseudo; see tsem/SPEC.md section 2. */
static __always_inline bool is_pseudo(__u32 magic)
{
	switch (magic) {
	case 0x9fa0:	 /* proc */
	case 0x62656572: /* sysfs */
	case 0x64626720: /* debugfs */
	case 0x01021994: /* tmpfs */
	case 0x1cd1:	 /* devpts */
	case 0x42494e4d: /* binfmt_misc */
	case 0x73636673: /* securityfs */
	case 0xf97cff8c: /* selinuxfs */
	case 0x43415d53: /* smackfs */
	case 0x27e0eb:	 /* cgroup */
	case 0x63677270: /* cgroup2 */
	case 0x6e736673: /* nsfs */
	case 0xde5e81e4: /* efivarfs */
		return true;
	}
	return false;
}

/*
 * File systems where this kernel sees every change of a file's content as an
 * open for writing or a truncation of this very inode. Not so: stacked ones
 * (overlay: the layer's inode changes), those with a server (NFS, FUSE, 9p),
 * and memfds, which are writable without ever having been opened. What root
 * writes to the block device beneath is not seen by any file system.
 */
static __always_inline bool is_cacheable(struct super_block *sb)
{
	if (sb->s_flags & SB_NOUSER)
		return false;
	switch ((__u64)sb->s_magic) {
	case 0xef53:	 /* ext2, ext3, ext4 */
	case 0x58465342: /* xfs */
	case 0x9123683e: /* btrfs */
	case 0xf2f52010: /* f2fs */
	case 0x858458f6: /* ramfs */
	case 0x01021994: /* tmpfs */
	case 0x73717368: /* squashfs */
	case 0xe0f5e1e2: /* erofs */
	case 0x9660:	 /* iso9660 */
		return true;
	}
	return false;
}

static __always_inline bool has_writer(struct inode *inode, struct address_space *mapping)
{
	return inode->i_writecount.counter > 0 || mapping->i_mmap_writable.counter > 0;
}

static __always_inline bool read_cache(struct digest_cache *c, __u64 epoch, __u8 *out)
{
	volatile struct digest_cache *v = c;
	__u64 guard = v->guard;

	if ((guard & 1) || v->stored != epoch + 1)
		return false;
	__builtin_memcpy(out, c->digest, 32);
	if (v->guard == guard && v->epoch == epoch)
		return true;
	__builtin_memset(out, 0, 32);
	return false;
}

static __always_inline void write_cache(struct digest_cache *c, __u64 epoch, const __u8 *digest)
{
	__u64 guard = *(volatile __u64 *)&c->guard;

	if ((guard & 1) || __sync_val_compare_and_swap(&c->guard, guard, guard + 1) != guard)
		return;
	__builtin_memcpy(c->digest, digest, 32);
	*(volatile __u64 *)&c->stored = epoch + 1;
	__sync_fetch_and_add(&c->guard, 1);
}

/* The content of inode is about to change. */
static __always_inline void end_version(struct inode *inode)
{
	struct digest_cache *c = bpf_inode_storage_get(&digests, inode, 0, 0);

	if (c)
		__sync_fetch_and_add(&c->epoch, 1);
}

static __always_inline void note_truncation(struct dentry *dentry, struct iattr *attr)
{
	struct inode *inode = dentry->d_inode;

	if (inode && (attr->ia_valid & ATTR_SIZE))
		end_version(inode);
}

static __always_inline __u8 compute(struct file *file, __u8 *out)
{
	if (bpf_ima_file_hash(file, out, 32) == HASH_ALGO_SHA256)
		return DIGEST_SHA256;
	__builtin_memset(out, 0, 32);
	return DIGEST_FAILED;
}

/*
 * The digest of file's content, from the cache if no writer is there now and
 * none has been there since it was stored. A digest is stored only if no
 * writer was there when it was begun, none is there at its end, and the
 * version is still the same: change times say nothing (many changes leave them
 * equal), and a writer of a shared mapping keeps its file open for writing.
 */
static __always_inline __u8 digest(struct file *file, struct inode *inode, __u8 *out)
{
	struct inode *from = to_follow(struct inode, inode);
	struct address_space *mapping = from->i_mapping;
	struct digest_cache *c = NULL;
	__u64 epoch = 0;
	__u8 state;

	if (is_cacheable(from->i_sb) && !has_writer(inode, mapping))
		c = bpf_inode_storage_get(&digests, inode, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (c) {
		epoch = *(volatile __u64 *)&c->epoch;
		if (!has_writer(inode, mapping) && read_cache(c, epoch, out))
			return DIGEST_SHA256;
		if (has_writer(inode, mapping))
			c = NULL;
	}
	state = compute(file, out);
	if (c && state == DIGEST_SHA256 && !has_writer(inode, mapping) && *(volatile __u64 *)&c->epoch == epoch)
		write_cache(c, epoch, out);
	return state;
}

/*
 * What is run is digested wherever it lies, unless it is far too large, which is a
 * failure and said to be. Otherwise:
 * regular files, not on pseudo file systems, opened to be read only (what is
 * open for writing has no settled content), up to a limit. Readable: the open
 * is complete. Before that the kernel refuses to read the file. F is filled.
 */
static __always_inline __u8 digest_for(struct file_body *f, struct file *file, struct inode *inode, bool run,
				       bool readable)
{
	if ((f->mode & S_IFMT) != S_IFREG)
		return DIGEST_NO_FILE;
	if (run) {
		if (f->size > RUN_LIMIT)
			return DIGEST_FAILED;
	} else {
		if (is_pseudo(f->magic))
			return DIGEST_NO_FILE;
		if ((file->f_mode & (FMODE_READ | FMODE_WRITE)) != FMODE_READ || f->size > DIGEST_LIMIT)
			return DIGEST_ABSENT;
	}
	return readable ? digest(file, inode, f->digest) : DIGEST_ABSENT;
}

static __always_inline struct mnt_namespace *mounts_of(struct task_struct *t)
{
	return to_follow(struct task_struct, t)->nsproxy->mnt_ns;
}

#define path_of(file) (&to_follow(struct file, file)->f_path)

/* The struct mount around a struct vfsmount. */
static __always_inline unsigned long mount_of(unsigned long mnt)
{
	return mnt ? mnt - __builtin_preserve_field_info(((struct mount *)0)->mnt, BPF_FIELD_BYTE_OFFSET) : 0;
}

#define read_mount(m, field) \
	(has_casts ? (__u64)cast_to(struct mount, m)->field : (__u64)BPF_CORE_READ((struct mount *)(m), field))

#define TOP_MOUNTS 4 /* one on the other at the top of a namespace; who has more is said to have changed its root */

/*
 * Is the mount the one that a namespace shows at its top? That is its first mount,
 * which has this root, or what was mounted on the root of one that is.
 */
static __noinline bool is_top(__u64 mount, __u64 first, __u64 root)
{
	__u64 under;

	for (int i = 0; i < TOP_MOUNTS; i++) {
		if (mount == first)
			return true;
		under = read_mount(mount, mnt_parent);
		if (read_mount(mount, mnt_mountpoint) != (under == first ? root : read_mount(under, mnt.mnt_root)))
			return false;
		mount = under;
	}
	return false;
}

/*
 * From where the paths of a task are named whose mount namespace is own. Init is the
 * initial pid namespace's first task; its root is the machine's.
 */
static __always_inline __u8 path_kind(struct task_struct *t, struct mnt_namespace *own)
{
	struct task_struct *from = to_follow(struct task_struct, t);
	struct task_struct *init = from->thread_pid->numbers[0].ns->child_reaper;
	struct fs_struct *fs = from->fs, *top = init->fs;
	struct vfsmount *mnt = fs->root.mnt;
	struct dentry *root = fs->root.dentry;
	struct mount *first;

	if (own == init->nsproxy->mnt_ns)
		return root == top->root.dentry && mnt == top->root.mnt ? PATH_ROOT : PATH_CHROOT;
	first = own->root;
	if (root == mnt->mnt_root && is_top(mount_of((unsigned long)mnt), (__u64)first, (__u64)first->mnt.mnt_root))
		return PATH_NAMESPACE;
	return PATH_CHROOT;
}

/*
 * Where file's mount is not in own: what is in no namespace, a memfd's or one that
 * was taken away, lies beyond every root; what is in the machine's lies in that.
 */
static __always_inline __u16 foreign(struct file *file, struct task_struct *t, struct mnt_namespace *own)
{
	__u64 m = mount_of((unsigned long)path_of(file)->mnt);
	__u64 in = read_mount(m, mnt_ns);
	struct task_struct *init;

	if (in == (__u64)own)
		return 0;
	init = to_follow(struct task_struct, t)->thread_pid->numbers[0].ns->child_reaper;
	return in && in == (__u64)init->nsproxy->mnt_ns ? TAIL_UNREACHABLE | TAIL_FOREIGN : TAIL_UNREACHABLE;
}

/* A walk from a file up to the task's root, mount by mount. */
struct ascent {
	__u64 at;    /* a dentry */
	__u64 mount; /* the struct mount that it is in */
	__u64 root, root_mount;
	__u32 whole; /* the root is that of its mount */
	__u32 met;
};

static long ascend(__u32 i, struct ascent *a)
{
	struct mount *m = (void *)a->mount;
	struct dentry *d = (void *)a->at;
	__u64 up;

	if (a->mount == a->root_mount) {
		a->met = a->whole || a->at == a->root;
		up = (__u64)BPF_CORE_READ(d, d_parent);
		if (a->met || up == a->at)
			return 1;
		a->at = up;
		return 0;
	}
	up = (__u64)BPF_CORE_READ(m, mnt_parent);
	if (up == a->mount)
		return 1;
	a->at = (__u64)BPF_CORE_READ(m, mnt_mountpoint);
	a->mount = up;
	return 0;
}

#define ASCENT_STEPS 4096 /* directories and mounts; who is deeper counts as outside */

/* Does file lie in no directory below the root of the task? */
static __always_inline bool is_above(struct file *file, struct task_struct *t)
{
	struct ascent a = {};

	a.at = (__u64)BPF_CORE_READ(file, f_path.dentry);
	a.mount = mount_of((unsigned long)BPF_CORE_READ(file, f_path.mnt));
	a.root = (__u64)BPF_CORE_READ(t, fs, root.dentry);
	a.root_mount = mount_of((unsigned long)BPF_CORE_READ(t, fs, root.mnt));
	a.whole = a.root == (__u64)BPF_CORE_READ(t, fs, root.mnt, mnt_root);
	if (!a.whole || a.mount != a.root_mount)
		bpf_loop(ASCENT_STEPS, ascend, &a, 0);
	else
		a.met = 1;
	return !a.met;
}

/*
 * How file lies outside the root of the task, whose mount namespace is own, 0 if it
 * does not. The kernel names such a file as if it lay inside. Where the root is the
 * machine's nothing does but what is foreign.
 */
static __always_inline __u16 outside(struct file *file, struct task_struct *t, struct mnt_namespace *own, __u8 kind)
{
	__u16 flags = foreign(file, t, own);

	return flags || kind == PATH_ROOT || !is_above(file, t) ? flags : TAIL_UNREACHABLE;
}

/*
 * The id of a file system, all zero before. Its end is looked for in eight bytes at
 * a time: behind it can be what is left of a longer one.
 */
static __always_inline void fill_fsid(__u64 *to, const __u64 *from)
{
	for (int i = 0; i < 4; i++) {
		__u64 word = from[i];
		__u64 ends = (word - 0x0101010101010101ULL) & ~word & 0x8080808080808080ULL;

		if (ends) {
			to[i] = word & (((ends & -ends) >> 7) - 1);
			return;
		}
		to[i] = word;
	}
}

/*
 * Writes all of f but from where the path is named and what state the digest is in,
 * which are the caller's; the digest is all zero.
 */
static __always_inline void fill_file(struct file_body *f, struct file *file, struct inode *inode)
{
	struct super_block *sb = to_follow(struct inode, inode)->i_sb;

	f->inode = inode->i_ino;
	f->generation = inode->i_generation;
	f->dev = sb->s_dev;
	f->flags = file->f_flags;
	f->uid = inode->i_uid.val;
	f->gid = inode->i_gid.val;
	f->mode = inode->i_mode;
	f->magic = sb->s_magic;
	f->links = inode->i_nlink;
	f->size = inode->i_size;
	__builtin_memset(f->fsid, 0, sizeof(f->fsid));
	fill_fsid((__u64 *)f->fsid, (__u64 *)sb->s_id);
	((__u64 *)f->uuid)[0] = *(__u64 *)&sb->s_uuid.b[0];
	((__u64 *)f->uuid)[1] = *(__u64 *)&sb->s_uuid.b[8];
	__builtin_memset(f->digest, 0, sizeof(f->digest));
}

#define DELETED_SUFFIX 10		      /* strlen(" (deleted)") */
#define DELETED_ENDING 0x29646574656c6564ULL /* "deleted)" */

/*
 * The path tail at record[at]; own is the task's mount namespace, and kind says
 * from where the path is named. The kernel
 * appends " (deleted)" to the name of an unlinked file; here that is a flag, and
 * a file that is called so keeps its name.
 */
static __always_inline __u32 put_path(struct scratch *sc, __u32 at, struct file *file, struct task_struct *t,
				      struct mnt_namespace *own, __u8 kind)
{
	__u8 *data = &sc->record[at + 8];
	__u16 flags = outside(file, t, own, kind) | (file->f_mode & FMODE_CREATED ? TAIL_MADE : 0);
	long n = bpf_d_path(&file->f_path, (char *)data, PATH_SIZE);
	__u32 length, cut;

	if (n <= 1 || n > PATH_SIZE)
		return close_tail(sc, at, TAG_PATH, flags | TAIL_TRUNCATED, 0);
	length = n - 1;
	/* A name that leads to no root at all, since it was left by a handle or moved away, is given as the root's. */
	if (length == 1 && path_of(file)->dentry != path_of(file)->mnt->mnt_root)
		flags |= TAIL_UNREACHABLE;
	cut = length - DELETED_SUFFIX;
	barrier_var(cut);
	if (cut < PATH_SIZE && *(__u64 *)&data[cut + DELETED_SUFFIX - 8] == DELETED_ENDING &&
	    !path_of(file)->dentry->d_hash.pprev) {
		length = cut;
		flags |= TAIL_UNLINKED;
	}
	return close_tail(sc, at, TAG_PATH, flags, length);
}

#endif
