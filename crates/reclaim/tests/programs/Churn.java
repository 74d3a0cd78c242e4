/** Three threads that build and drop strings, each checked when it is dropped. Says "@ready"; answers each line with how many
 * were wrong. With an argument it first fills so many megabytes and drops them; with a second one it has so many threads. */
public class Churn {
    static final java.util.concurrent.atomic.AtomicLong wrong = new java.util.concurrent.atomic.AtomicLong();

    static void fill(int megabytes) {
        var blocks = new java.util.ArrayList<byte[]>();
        for (int n = 0; n < 4 * megabytes; n++) blocks.add(new byte[1 << 18]);
    }

    public static void main(String[] args) throws Exception {
        if (args.length > 0) fill(Integer.parseInt(args[0]));
        int threads = args.length > 1 ? Integer.parseInt(args[1]) : 3;
        var ready = new java.util.concurrent.CountDownLatch(threads);
        for (int t = 0; t < threads; t++) {
            final int number = t;
            var thread = new Thread(() -> {
                var texts = new java.util.ArrayDeque<String>();
                for (int step = 0; ; step++) {
                    texts.add((number + "-" + step + " ").repeat(step % 2000));
                    if (texts.size() > 200) {
                        String text = texts.poll();
                        int dash = text.indexOf(' ') + 1;
                        if (dash > 0 && !text.equals(text.substring(0, dash).repeat(text.length() / dash))) wrong.incrementAndGet();
                        ready.countDown();
                    }
                    java.util.concurrent.locks.LockSupport.parkNanos(20_000);
                }
            });
            thread.setDaemon(true);
            thread.start();
        }
        ready.await();
        System.out.println("@ready");
        for (int got; (got = System.in.read()) >= 0; ) if (got == '\n') System.out.println("@ready " + wrong.get());
    }
}
