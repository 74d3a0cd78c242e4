// SPDX-License-Identifier: GPL-2.0
/*
 * A kernel leak, for the virtual machine only: unreclaimable slab that grows for ever and that nothing owns.
 * Every 100 ms it allocates a tenth of `kib_per_s` KiB in objects of `size` bytes and drops the pointers, so that unloading the
 * module gives nothing back: only a restart does, as with the real thing.
 */
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/workqueue.h>

static unsigned int kib_per_s = 2560;
module_param(kib_per_s, uint, 0644);
MODULE_PARM_DESC(kib_per_s, "KiB lost every second");

static unsigned int size = 1024;
module_param(size, uint, 0444);
MODULE_PARM_DESC(size, "bytes of one lost object");

static void lose(struct work_struct *work);
static DECLARE_DELAYED_WORK(losing, lose);

static void lose(struct work_struct *work)
{
	unsigned long left;

	for (left = kib_per_s * 1024UL / 10; left >= size; left -= size) {
		void *lost = kmalloc(size, GFP_KERNEL | __GFP_NOWARN);

		if (!lost)
			break;
		/* Keeps the compiler from dropping an allocation whose result is not used. */
		OPTIMIZER_HIDE_VAR(lost);
	}
	schedule_delayed_work(&losing, HZ / 10);
}

static int __init start(void)
{
	if (!size || size > KMALLOC_MAX_SIZE)
		return -EINVAL;
	schedule_delayed_work(&losing, 0);
	return 0;
}

static void __exit stop(void)
{
	cancel_delayed_work_sync(&losing);
}

module_init(start);
module_exit(stop);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Loses kernel memory on purpose");
