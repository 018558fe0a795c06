# Work of a server on a filesystem, without modules of Perl: work.pl DIRECTORY ACTION [ARGUMENT...]
#
#   populate SEED        programs and their documentation, a database, a log
#   normal SEED PART     a part of a day's work, part 0 of 2 of each day at night
#   encrypt SEED MIB     overwrites files in place with random bytes, as ransomware does
#   delete SEED          deletes two thirds of the programs

my ($dir, $action, $seed, $argument) = @ARGV;
srand $seed;
my $BLOCK = 4096;
my ($FILES, $DATABASE_MIB, $DUMP_MIB, $ARCHIVE_MIB, $KEPT) = (1800, 96, 32, 12, 8);

open my $random, '<', '/dev/urandom' or die;
my @words = map { join '', map { chr(97 + int rand 26) } 1 .. 2 + int rand 8 } 1 .. 2000;

sub text { # text LEN_BYTES: words, with a different start for each block
    my ($len) = @_;
    our $lines ||= join '', map { $words[rand @words] . (rand 12 < 1 ? "\n" : ' ') } 1 .. 60000;
    my $text = '';
    while (length $text < $len) {
        $text .= substr $lines, int rand(length($lines) - $BLOCK), $BLOCK;
    }
    return substr $text, 0, $len;
}

sub noise { # noise LEN_BYTES: what compressed or encrypted data looks like
    my ($len) = @_;
    my $noise = '';
    while (length $noise < $len) { sysread $random, $noise, $len - length $noise, length $noise or die }
    return $noise;
}

sub put { # put PATH MODE CONTENT
    my ($path, $mode, $content) = @_;
    open my $file, $mode, "$dir/$path" or die "$path: $!";
    print $file $content or die "$path: $!";
    close $file or die "$path: $!";
}

sub rewrite { # rewrite PATH CONTENT: as package managers do
    my ($path, $content) = @_;
    put("$path.new", '>', $content);
    rename "$dir/$path.new", "$dir/$path" or die "$path: $!";
}

sub program { # program NUMBER: every eighth one is a compressed file
    my ($number) = @_;
    my $len = (1 + int rand 48) * $BLOCK;
    mkdir "$dir/usr/" . $number % 30;
    rewrite('usr/' . $number % 30 . "/$number", $number % 8 ? text($len) : noise($len));
}

sub large { # large PATH MIB SOURCE
    my ($path, $mib, $source) = @_;
    put($path, '>', '');
    put($path, '>>', $source->(1 << 20)) for 1 .. $mib;
}

sub keep { # keep DIRECTORY COUNT: deletes the oldest files, which have the lowest numbers
    my ($of, $count) = @_;
    opendir my $open, "$dir/$of" or die;
    my @files = sort { $a <=> $b } grep { /^\d/ } readdir $open;
    unlink "$dir/$of/" . shift @files while @files > $count;
}

sub night {
    my ($day) = @_;
    rename "$dir/log", "$dir/logs/plain" or die;
    put("logs/$day", '>', noise(200 << 10));
    unlink "$dir/logs/plain";
    put('log', '>', '');
    keep('logs', 7);
    large('dump', $DUMP_MIB, \&text);
    large("archives/$day", $ARCHIVE_MIB, \&noise);
    unlink "$dir/dump";
    keep('archives', $KEPT);
    if ($day % 7 == 6) {
        large('database.new', $DATABASE_MIB, \&text);
        rename "$dir/database.new", "$dir/database" or die;
    }
    if (rand 10 < 1) {
        program(int rand $FILES) for 1 .. 150;
    }
}

sub normal {
    my ($part) = @_;
    open my $database, '+<', "$dir/database" or die;
    for (1 .. 300) {
        seek $database, 2 * $BLOCK * int(rand $DATABASE_MIB * 128), 0;
        print $database text(2 * $BLOCK);
    }
    close $database or die;
    put('log', '>>', text(1 << 20));
    night(int($part / 2)) if $part % 2 == 0;
}

sub encrypt {
    my ($mib) = @_;
    my $left = $mib << 20;
    for my $path (map({ "usr/" . $_ % 30 . "/$_" } grep { $_ % 8 } 0 .. $FILES - 1), 'database') {
        my $len = -s "$dir/$path" or next;
        $len = $left if $len > $left;
        last if $len <= 0;
        open my $file, '+<', "$dir/$path" or die;
        for (my $at = 0; $at < $len; $at += 1 << 20) {
            print $file noise($len - $at > 1 << 20 ? 1 << 20 : $len - $at);
        }
        close $file or die;
        $left -= $len;
    }
}

if ($action eq 'populate') {
    mkdir "$dir/$_" for 'usr', 'logs', 'archives';
    program($_) for 0 .. $FILES - 1;
    large('database', $DATABASE_MIB, \&text);
    put('log', '>', text(1 << 20));
} elsif ($action eq 'normal') {
    normal($argument);
} elsif ($action eq 'encrypt') {
    encrypt($argument);
} elsif ($action eq 'delete') {
    unlink map { "$dir/usr/" . $_ % 30 . "/$_" } grep { $_ % 3 } 0 .. $FILES - 1;
} else {
    die "unknown action $action";
}
