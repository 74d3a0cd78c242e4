/**
 * A JVM of the lab: allocates arguments[0] MB of garbage beside arguments[1] MB that live, collects if
 * arguments[2] is "collect", says its figures in a line of JSON and waits.
 */
public final class Lab {
    static byte[][] live;

    static byte[][] fill(int megabytes) {
        byte[][] all = new byte[megabytes * 16][];
        for (int i = 0; i < all.length; i++) {
            all[i] = new byte[64 << 10];
            java.util.Arrays.fill(all[i], (byte) 1);
        }
        return all;
    }

    public static void main(String[] arguments) throws Exception {
        byte[][] garbage = fill(Integer.parseInt(arguments[0]));
        live = fill(Integer.parseInt(arguments[1]));
        long sum = garbage.length + live.length;
        garbage = null;
        if (arguments[2].equals("collect")) {
            System.gc();
        }
        Runtime runtime = Runtime.getRuntime();
        long committed = runtime.totalMemory();
        System.out.println("{\"committed\":" + committed + ",\"used\":" + (committed - runtime.freeMemory())
                + ",\"max\":" + runtime.maxMemory() + ",\"blocks\":" + sum + "}");
        while (System.in.read() >= 0) {
            sum++;
        }
    }
}
